package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"pganalytics/pkg/identity/ca"
)

// The keys of the identity bucket: "meta", "key.<kid>", "collector.<uuid>",
// "revoked.<hex of the thumbprint>". Each value is one JSON object. Readers
// ignore members that they do not know, so that an older verifier can follow a
// newer authsvc.
const (
	metaKey         = "meta"
	keyPrefix       = "key."
	collectorPrefix = "collector."
	revokedPrefix   = "revoked."

	fingerprintPrefix = "sha256:"
)

// Meta tells a complete bucket from an empty or a cut one. Its writer puts
// records before it raises the counts, and lowers the counts before it removes
// records, so the bucket always holds at least what Meta says.
type Meta struct {
	Generation int64 `json:"generation"` // rises with each write of Meta
	Collectors int   `json:"collectors"`
	Revoked    int   `json:"revoked"`
	Keys       int   `json:"keys"`
	Users      int   `json:"users"`
	APITokens  int   `json:"api_tokens"`
}

// Record returns key and value for the bucket.
func (m Meta) Record() (string, []byte, error) { return record(metaKey, m) }

// Status says whether a collector may push.
type Status uint8

// The states. The zero value is none of them and lets nobody through.
const (
	statusInvalid Status = iota
	Registered           // enrolled, never seen
	Active               // seen recently
	Offline              // not seen for a while
	Disabled             // by an operator
	Locked               // by an old certificate that renewed: a copied key, perhaps
)

var statusNames = [...]string{"invalid", "registered", "active", "offline", "disabled", "locked"}

// ParseStatus is the inverse of String.
func ParseStatus(s string) (Status, error) {
	for i, name := range statusNames[1:] {
		if s == name {
			return Status(i + 1), nil
		}
	}
	return statusInvalid, errors.New("unknown collector status")
}

// String returns the status as it stands in records and answers.
func (s Status) String() string {
	if int(s) >= len(statusNames) {
		return statusNames[statusInvalid]
	}
	return statusNames[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Status) UnmarshalText(text []byte) (err error) {
	*s, err = ParseStatus(string(text))
	return err
}

// Collector is what verifiers know of a collector.
type Collector struct {
	ID         uuid.UUID `json:"id"`
	Status     Status    `json:"status"`
	Generation int       `json:"generation"` // of the newest certificate
	Thumbprint string    `json:"thumbprint"` // of the newest certificate
	Hostname   string    `json:"hostname"`
	ChangedAt  time.Time `json:"changed_at"` // orders two versions of this record
}

// Supersedes reports whether the record is newer than the value that stands
// under its key, or that value is none.
func (c Collector) Supersedes(value []byte) bool {
	old, err := decodeCollector(collectorPrefix+c.ID.String(), value)
	return err != nil || c.ChangedAt.After(old.ChangedAt)
}

// Record returns key and value for the bucket.
func (c Collector) Record() (string, []byte, error) { return record(collectorPrefix+c.ID.String(), c) }

// Revocation names a certificate that is refused before its time.
type Revocation struct {
	Thumbprint  string    `json:"thumbprint"`
	CollectorID uuid.UUID `json:"collector_id"`
	NotAfter    time.Time `json:"not_after"` // of the certificate: what is expired need not be listed
	RevokedAt   time.Time `json:"revoked_at"`
}

// Record returns key and value for the bucket.
func (r Revocation) Record() (string, []byte, error) {
	return record(revokedPrefix+strings.TrimPrefix(r.Thumbprint, fingerprintPrefix), r)
}

// KeyRecord returns key and value for the bucket.
func KeyRecord(k ca.SigningKey) (string, []byte, error) { return record(keyPrefix+k.KID, k) }

func record(key string, v any) (string, []byte, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return "", nil, fmt.Errorf("encode record %s: %w", key, err)
	}
	return key, value, nil
}

// decodeCollector errs unless the record is whole and stands under its own key.
func decodeCollector(key string, value []byte) (Collector, error) {
	var c Collector
	if err := json.Unmarshal(value, &c); err != nil {
		return c, err
	}
	if c.Status == statusInvalid || c.ID == uuid.Nil || collectorPrefix+c.ID.String() != key {
		return c, errors.New("record does not belong under its key or lacks a status")
	}
	return c, nil
}

// decodeRevocation takes the thumbprint from the key: even a spoilt record
// revokes what it stands for.
func decodeRevocation(key string, value []byte) (r Revocation, ok bool) {
	hexed := strings.TrimPrefix(key, revokedPrefix)
	if raw, err := hex.DecodeString(hexed); err != nil || len(raw) != 32 || hexed != strings.ToLower(hexed) {
		return r, false
	}
	if err := json.Unmarshal(value, &r); err != nil {
		r = Revocation{}
	}
	r.Thumbprint = fingerprintPrefix + hexed
	return r, true
}

func decodeMeta(value []byte) (Meta, error) {
	var m Meta
	if err := json.Unmarshal(value, &m); err != nil {
		return m, err
	}
	if m.Generation <= 0 || m.Collectors < 0 || m.Revoked < 0 || m.Keys < 1 || m.Users < 0 || m.APITokens < 0 {
		return m, errors.New("counts make no sense")
	}
	return m, nil
}
