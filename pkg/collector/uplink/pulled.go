package uplink

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/policy"
	"pganalytics/pkg/policy/pulled"
)

// PulledName is the file in the state directory that keeps what was pulled.
const PulledName = "pulled.json"

// PullerConfig says what is done with what was pulled.
type PullerConfig struct {
	// File keeps the last good document, mode 0600.
	File string

	// CheckIn is the pause between two looks until a gateway tells another.
	// Defaults to 1m; jittered by a quarter.
	CheckIn time.Duration

	// Apply puts a document in force: at once, and whatever it says.
	Apply func(policy.Document)

	// Resend sends batches of these numbers once more and tells how many
	// batches it has found and how many numbers are not there. It may be nil:
	// then nothing is sent again.
	Resend func(ctx context.Context, ranges []pulled.Range) (found, missing int, err error)
}

// Puller keeps the collector to the configuration that its backend has for it.
// A document that cannot be read is refused, and the one before stays in
// force; while the backend is away everything stays as it is.
type Puller struct {
	cfg       PullerConfig
	client    *Client
	catalogue *catalogue.Catalogue
	log       *slog.Logger

	held     held
	document policy.Document // of held
	state    pulled.State    // as it is told
	tag      string          // of the last answer
	failing  bool
	misses   int // looks in a row that did not bring the version which pushes tell of
}

// held is the file.
type held struct {
	CollectorID uuid.UUID      `json:"collector_id"` // whoever enrols anew starts without
	Version     int64          `json:"version"`
	Document    string         `json:"document"`
	Resent      *pulled.Resent `json:"resent,omitempty"`
}

// NewPuller makes a puller and reads what it holds. A file that is spoilt is
// logged and counts as none.
func NewPuller(cfg PullerConfig, client *Client, cat *catalogue.Catalogue, log *slog.Logger) *Puller {
	client.next.tell(0, cmp.Or(cfg.CheckIn, time.Minute))
	p := &Puller{cfg: cfg, client: client, catalogue: cat, log: log}
	if err := p.load(); err != nil {
		log.Error("pulled configuration on disk is not readable; it is pulled again", "err", err)
		p.held, p.document = held{}, policy.Document{}
	}
	p.held.CollectorID = client.collectorID()
	p.state = pulled.State{Applied: p.held.Version, Resent: p.held.Resent, Detail: p.passedOver()}
	client.metrics.configVersion.Set(float64(p.held.Version))
	return p
}

// Document returns the last good document, zero if there is none.
func (p *Puller) Document() policy.Document { return p.document }

func (p *Puller) load() error {
	data, err := os.ReadFile(p.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.held)
	}
	if err != nil {
		return err
	}
	if p.held.CollectorID != p.client.collectorID() {
		p.held = held{}
		return nil
	}
	p.document, err = parsePulled(p.held.Version, p.held.Document)
	return err
}

func (p *Puller) save() error {
	data, err := json.Marshal(p.held)
	if err != nil {
		return err
	}
	return replaceFile(p.cfg.File, data)
}

// parsePulled takes families that the catalogue does not have: see policy.Parse.
func parsePulled(version int64, document string) (policy.Document, error) {
	if document == "" {
		return policy.Document{}, nil
	}
	return policy.Parse(fmt.Sprintf("configuration %d", version), []byte(document), nil)
}

// minLook is the least pause between two looks. It doubles, up to the time to
// check in, while pushes tell of a version that cannot be had: the gateway that
// is asked may be behind.
const minLook = time.Second

// Run looks for a new configuration whenever a push tells of one, and now and
// then, until ctx ends.
func (p *Puller) Run(ctx context.Context) error {
	for {
		least := p.look(ctx)
		if !wait(ctx, least) || !p.client.next.wait(ctx, p.known) {
			return nil
		}
	}
}

// known reports whether a version is no news.
func (p *Puller) known(version int64) bool { return version <= max(p.state.Applied, p.state.Refused) }

// look is a result of one look.
type look string

const (
	applied   look = "applied"
	unchanged look = "unchanged"
	none      look = "none"    // nothing was ever set
	stale     look = "stale"   // a gateway that is behind
	spoilt    look = "refused" // by us
	failed    look = "failed"
)

// look asks the backend, does what it says, and if that changed something asks
// once more, for this is how the backend learns of it. It returns the least
// pause until the next look.
func (p *Puller) look(ctx context.Context) time.Duration {
	before := p.state
	err := p.pull(ctx)
	if err == nil && !p.state.Same(before) {
		err = p.pull(ctx)
	}
	if ctx.Err() != nil {
		return 0
	}
	p.tell(ctx, err)
	version, check := p.client.next.read()
	if p.misses++; p.known(version) {
		p.misses = 0
	}
	least := min(minLook<<min(p.misses, 12), max(minLook, check))
	if problem, ok := errors.AsType[*problem](err); ok {
		least = max(least, problem.RetryAfter)
	}
	return least
}

// tell logs when looking begins or ceases to fail.
func (p *Puller) tell(ctx context.Context, err error) {
	switch {
	case err != nil:
		level := slog.LevelDebug
		if !p.failing {
			level = slog.LevelWarn
		}
		p.log.Log(ctx, level, "configuration cannot be pulled; the one in force stays", "version", p.held.Version, "err", err)
	case p.failing:
		p.log.Info("configuration can be pulled again", "version", p.held.Version)
	}
	p.failing = err != nil
}

// pull asks once and counts what came of it.
func (p *Puller) pull(ctx context.Context) error {
	result, err := p.ask(ctx)
	p.client.metrics.configs.WithLabelValues(string(result)).Inc()
	return err
}

func (p *Puller) ask(ctx context.Context) (look, error) {
	tag := p.tag
	text, err := p.client.config(ctx, &tag, p.state)
	if problem, ok := errors.AsType[*problem](err); ok && problem.Status == http.StatusNotFound && problem.Code == "no_config" {
		return none, nil
	}
	if err != nil {
		return failed, err
	}
	if len(text) == 0 {
		return unchanged, nil
	}
	var answer pulled.Answer
	if err := decode(text, &answer); err != nil {
		return failed, err
	}
	if answer.CollectorID != p.held.CollectorID {
		return failed, errors.New("the answer is for another collector")
	}
	result := p.consider(answer)
	if !p.resend(ctx, answer.Resend) {
		return result, nil // and be told of it again
	}
	p.tag = tag
	return result, nil
}

// consider puts a newer version in force.
func (p *Puller) consider(answer pulled.Answer) look {
	newest := max(p.state.Applied, p.state.Refused)
	switch {
	case answer.Version == newest:
		return unchanged
	case answer.Version < newest:
		return stale
	}
	doc, err := parsePulled(answer.Version, answer.Document)
	if err != nil {
		p.log.Error("pulled configuration is refused; the one in force stays", "version", answer.Version, "in_force", p.held.Version, "err", err)
		p.state.Refused, p.state.Detail = answer.Version, bounded(strings.ReplaceAll(err.Error(), "\n", "; "))
		return spoilt
	}
	p.cfg.Apply(doc)
	p.document = doc
	p.held.Version, p.held.Document = answer.Version, answer.Document
	p.state = pulled.State{Applied: answer.Version, Detail: p.passedOver(), Resent: p.held.Resent}
	p.client.metrics.configVersion.Set(float64(answer.Version))
	p.keep()
	p.log.Info("pulled configuration is in force", "version", answer.Version)
	return applied
}

// keep writes the file. What is in force stays so if that fails: a start
// would then begin with the one before, and pull again.
func (p *Puller) keep() {
	if err := p.save(); err != nil {
		p.log.Error("pulled configuration is not kept on disk", "err", err)
	}
}

// passedOver names what the document has and the catalogue has not.
func (p *Puller) passedOver() string {
	unknown := p.document.Unknown(p.catalogue)
	if len(unknown) == 0 {
		return ""
	}
	names := strings.Join(unknown, ", ")
	p.log.Warn("pulled configuration has families that this collector does not know", "version", p.held.Version, "families", names)
	return bounded("families that this collector does not know: " + names)
}

// resend does a request that was not done before. It returns false if the
// request must come again.
func (p *Puller) resend(ctx context.Context, request *pulled.Resend) bool {
	done := p.held.Resent
	if request == nil || p.cfg.Resend == nil || done != nil && done.ID == request.ID {
		return true
	}
	found, missing, err := p.cfg.Resend(ctx, request.Ranges)
	p.client.metrics.resend(err)
	if err != nil {
		p.log.Error("batches cannot be sent again; it is tried again", "request", request.ID, "err", err)
		return false
	}
	p.held.Resent = &pulled.Resent{ID: request.ID, Found: found, Missing: missing}
	p.state.Resent = p.held.Resent
	p.keep()
	p.log.Info("batches are sent again, as the backend has asked", "request", request.ID, "batches", found, "numbers_missing", missing)
	return true
}

func bounded(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), pulled.MaxDetail)], "")
}
