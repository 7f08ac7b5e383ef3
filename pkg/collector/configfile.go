package collector

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/logread"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/policy"
)

// ReadConfig reads the configuration file into c, over what c holds. All
// faults are reported at once, each as file:line; unknown and repeated keys
// are faults. No fault shows a conninfo.
func ReadConfig(path string, cat *catalogue.Catalogue, c *Config) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(path, data, cat, c)
}

func parseConfig(path string, data []byte, cat *catalogue.Catalogue, c *Config) error {
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s:1: the file is empty", path)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s:%d: there must be one document", path, max(more.Line, 1))
	}
	p := &parser{Parser: policy.Parser{File: path, Catalogue: cat}}
	p.config(doc.Content[0], c)
	return p.Err()
}

// parser adds to policies what else a collector's file says.
type parser struct{ policy.Parser }

// keys are what a mapping may have.
type keys = map[string]func(*yaml.Node)

func (p *parser) config(n *yaml.Node, c *Config) {
	var all pgread.Config // what servers do not say themselves
	known := p.Keys(&c.Policy)
	p.limits(known, &all)
	known["hostname"] = p.text(&c.Hostname)
	known["labels"] = p.labels(&c.Labels)
	known["spool"] = func(n *yaml.Node) {
		p.Mapping(n, "spool", keys{
			"dir":        p.text(&c.Spool.Dir),
			"max_bytes":  p.bytes(&c.Spool.MaxBytes),
			"keep":       p.duration(&c.Spool.Keep, maxKeep),
			"keep_bytes": p.bytes(&c.Spool.KeepBytes),
		})
	}
	known["host"] = p.host(&c.Host)
	var servers []*yaml.Node
	known["servers"] = func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
			p.Fault(n, "servers must be a list")
			return
		}
		servers = n.Content
	}
	p.Mapping(n, "the configuration", known)
	for _, entry := range servers { // last, wherever in the file they stand
		p.server(entry, all, c)
	}
}

// limits adds the keys that all servers and each one may have.
func (p *parser) limits(known keys, c *pgread.Config) {
	known["statement_timeout"] = p.duration(&c.StatementTimeout, maxTimeout)
	known["lock_timeout"] = p.duration(&c.LockTimeout, maxTimeout)
	known["connect_timeout"] = p.duration(&c.ConnectTimeout, maxTimeout)
	known["query_text"] = func(n *yaml.Node) {
		var err error
		if c.QueryText, err = pgread.ParseTextPolicy(n.Value); err != nil {
			p.Fault(n, "query_text %q: must be off, redacted or full", n.Value)
		}
	}
}

func (p *parser) server(n *yaml.Node, all pgread.Config, c *Config) {
	s := Server{Config: all}
	var info Conninfo
	known := p.Keys(&s.Policy)
	p.limits(known, &s.Config)
	known["name"] = p.text(&s.Name)
	known["conninfo"] = p.text(&info.Plain)
	known["conninfo_file"] = p.text(&info.File)
	known["conninfo_env"] = p.text(&info.Env)
	known["log_files"] = p.logFiles(&s.LogFiles)
	p.Mapping(n, "a server", known)
	if hasPassword(s.Name) {
		p.Fault(n, "a server's name must not be its conninfo")
		return
	}
	for _, other := range c.Servers {
		if other.Name == s.Name && s.Name != "" {
			p.Fault(n, "server %q: name is used twice", s.Name)
		}
	}
	conninfo, err := info.Resolve()
	if err != nil {
		p.Fault(n, "server %q: %w", s.Name, err)
	} else if s.Conninfo = conninfo; s.Validate() != nil {
		p.Fault(n, "%w", s.Validate())
	}
	c.Servers = append(c.Servers, s)
}

// host is off, or says under which server the host's rows are stored.
func (p *parser) host(dst *Host) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if dst.Off = n.Kind == yaml.ScalarNode && n.Value == "off"; !dst.Off {
			p.Mapping(n, "host", keys{"name": p.text(&dst.Name)})
		}
	}
}

func (p *parser) logFiles(dst *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if _, err := logread.New(n.Value); err != nil {
			p.Fault(n, "%w", err)
		}
		*dst = n.Value
	}
}

func (p *parser) text(dst *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.Value == "" {
			p.Fault(n, "must be a text")
			return
		}
		*dst = n.Value
	}
}

func (p *parser) bytes(dst *int64) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, err := parseBytes(n.Value)
		if err != nil {
			p.Fault(n, "%w", err)
		}
		*dst = v
	}
}

// maxTimeout keeps a typing slip from waiting for ever.
const maxTimeout = 10 * time.Minute

// maxKeep is how long the backend takes batches after they were made.
const maxKeep = 30 * 24 * time.Hour

func (p *parser) duration(dst *time.Duration, most time.Duration) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, err := time.ParseDuration(n.Value)
		if err != nil || v < time.Millisecond || v > most {
			p.Fault(n, "%q: must be a duration from 1ms to %v, such as 500ms or 5s", n.Value, most)
		}
		*dst = v
	}
}

func (p *parser) labels(dst *map[string]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*dst = map[string]string{}
		p.Each(n, "labels", func(name, value *yaml.Node) {
			if push.Printable(name.Value) == "" || value.Kind != yaml.ScalarNode || !push.ValidNote(value.Value) {
				p.Fault(name, "label %q: name or value is not acceptable", name.Value)
			}
			(*dst)[name.Value] = value.Value
		})
	}
}

// parseBytes reads a number of bytes such as 512MiB.
func parseBytes(text string) (int64, error) {
	units := []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n <= 0 || n > (1<<62)/u.factor {
			break
		}
		return n * u.factor, nil
	}
	return 0, fmt.Errorf("%q: must be a number of bytes such as 1073741824, 512MiB or 1GiB", text)
}
