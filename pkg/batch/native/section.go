package native

import (
	"strconv"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch/internal/wire"
	"pganalytics/pkg/batch/push"
)

// section is one section while it is read.
type section struct {
	*decoder
	sentAt time.Time

	family  string // empty when it has none or no well-formed one
	server  push.Server
	columns push.Columns
	tuples  []byte
	found   found // of the tuples
}

// problem is the first fault of a section and where it is.
type problem struct {
	*push.Problem
	pointer string
}

func at(pointer string, p *push.Problem) *problem { return &problem{p, pointer} }

func (p *problem) rejection(index int, family string) push.Rejection {
	return push.Rejection{
		Index: index, Type: family, Pointer: "/sections/" + strconv.Itoa(index) + p.pointer, Code: p.Code, Reason: p.Reason,
	}
}

// read reads and checks the whole section. What it says of its times is not
// looked at.
func (s *section) read(data []byte) *problem {
	var family, server, serverID []byte
	var columns [][]byte
	rows := uint64(0)
	for f, bad := range sectionMessage.fields(data) {
		if bad != nil {
			return at("", bad)
		}
		switch f.Num {
		case wire.SectionFamily:
			family = f.Bytes
		case wire.SectionServer:
			server = f.Bytes
		case wire.SectionServerID:
			serverID = f.Bytes
		case wire.SectionColumns:
			columns = append(columns, f.Bytes)
		case wire.SectionRows:
			rows = f.Uint
		case wire.SectionTuples:
			s.tuples = f.Bytes
		}
	}
	s.family = push.Printable(family)
	known, ok := s.catalogue.Family(s.family)
	switch {
	case !ok:
		return at("/family", push.FamilyUnknown)
	case !push.ValidName(server):
		return at("/server", push.ServerInvalid)
	}
	s.family, s.server = known.Name, s.servers.Named(server)
	if id, err := uuid.FromBytes(serverID); err != nil || id != s.server.ID {
		return at("/server_id", serverForeign)
	}
	s.columns = push.ColumnsOf(known)
	for i, column := range columns {
		if p := s.column(column); p != nil {
			p.pointer = "/columns/" + strconv.Itoa(i) + p.pointer
			return p
		}
	}
	if bad := s.columns.Complete(); bad != nil {
		return at("/columns", bad)
	}
	if p := s.walk(); p != nil {
		return p
	}
	if rows != uint64(s.found.rows) {
		return at("/rows", rowsMiscounted)
	}
	return nil
}

// column adds a column, which must be of the catalogue's type.
func (s *section) column(data []byte) *problem {
	var name []byte
	number := uint64(0)
	for f, bad := range columnMessage.fields(data) {
		switch {
		case bad != nil:
			return at("", bad)
		case f.Num == wire.ColumnName:
			name = f.Bytes
		default:
			number = f.Uint
		}
	}
	if bad := s.columns.Add(name, s.limits); bad != nil {
		return at("/name", bad)
	}
	if number != uint64(s.columns.List[len(s.columns.List)-1].Type) {
		return at("/type", columnType)
	}
	return nil
}
