package health

import (
	"fmt"
	"strings"
	"time"
)

// Advice is one thing that is wrong and what to do about it.
type Advice struct {
	Wrong string `json:"wrong"` // one line
	Do    string `json:"do"`    // what to do, one line
	See   string `json:"see"`   // section of docs/operations.md
}

const (
	// fullAbove is the part of the stream that may be taken by what must stay;
	// the trimmer's high water, below which it needs nobody.
	fullAbove = 0.8
	// lagAbove is the age of a batch that no healthy ingester leaves waiting.
	lagAbove = 5 * time.Minute
	// heldAbove is the age of a hold that nobody works on any more, or with
	// little success.
	heldAbove = 24 * time.Hour
)

// Advise returns all that is wrong, what to do first first. None means that
// nothing is. What could not be asked is wrong, and about what depends on it
// nothing is said.
func Advise(f Facts) []Advice {
	var all []Advice
	for _, rule := range rules {
		if a := rule(&f); a != nil {
			all = append(all, *a)
		}
	}
	return all
}

// rules stand in the order in which to act: first what keeps everything else
// from working or endangers batches, then what only waits.
var rules = []func(*Facts) *Advice{
	natsAway, databaseAway, readOnly, wrongStream,
	gapHeld, streamFull, noIngester, ingestersBehind, replicaBehind, serveUnready,
	collectorsLocked, deadLetters, certificatesEnd, collectorsOffline, holdForgotten,
}

func natsAway(f *Facts) *Advice {
	if f.Stream != nil {
		return nil
	}
	return &Advice{
		"NATS does not answer: " + f.StreamError,
		"start NATS again; until then collectors keep their batches in their spools", "NATS is away",
	}
}

func databaseAway(f *Facts) *Advice {
	if f.Database != nil {
		return nil
	}
	return &Advice{
		"the database does not answer: " + f.DatabaseError,
		"start it again; until then batches wait on the stream", "The database is away",
	}
}

func readOnly(f *Facts) *Advice {
	if f.Database == nil || !f.Database.ReadOnly {
		return nil
	}
	return &Advice{
		"the database takes no writes: it is a standby, or set to read only",
		"promote it, or point the database URL to the primary", "A standby was promoted that was behind",
	}
}

func wrongStream(f *Facts) *Advice {
	if f.Stream == nil || f.Stream.Faults == "" {
		return nil
	}
	return &Advice{
		"the streams are not set up as they must be: " + f.Stream.Faults,
		"give all services the same --nats-… settings, then run: pganalytics migrate", "The streams' settings differ",
	}
}

func gapHeld(f *Facts) *Advice {
	hold := f.hold(func(h Hold) bool { return h.Name == Gap })
	if hold == nil {
		return nil
	}
	return &Advice{
		fmt.Sprintf("the database went back in time: it may lack batches %d to %d of the stream", hold.From, hold.To),
		"if nobody replays them yet, run: pganalytics replay", "The database is lost and restored from a backup",
	}
}

func streamFull(f *Facts) *Advice {
	if f.Stream == nil || f.Stream.MaxBytes <= 0 || float64(f.Stream.Kept) < fullAbove*float64(f.Stream.MaxBytes) {
		return nil
	}
	why := "with batches that are not stored"
	if len(f.Stream.Holds) > 0 {
		why = "with batches that are not stored or held"
	}
	return &Advice{
		fmt.Sprintf("the stream is %d%% full %s", 100*f.Stream.Kept/uint64(f.Stream.MaxBytes), why),
		"let the ingesters catch up, or give the stream more room", "The stream is full",
	}
}

func noIngester(f *Facts) *Advice {
	if f.Database == nil || f.Database.ReadOnly || f.Database.Ingesters > 0 {
		return nil
	}
	return &Advice{
		"no ingester wrote to the database within the last minute",
		"start one, or see in its log why it does not get on", "The ingesters are behind",
	}
}

func ingestersBehind(f *Facts) *Advice {
	if f.Stream == nil || time.Duration(f.Stream.Lag) < lagAbove || f.Database == nil || f.Database.Ingesters == 0 {
		return nil
	}
	return &Advice{
		fmt.Sprintf("%d batches wait, the oldest for %s", f.Stream.Backlog, f.Stream.Lag),
		"see in the ingesters' logs what holds them up; if they only have too much to do, start more", "The ingesters are behind",
	}
}

func replicaBehind(f *Facts) *Advice {
	if f.Stream == nil || len(f.Stream.Behind) == 0 {
		return nil
	}
	return &Advice{
		"not every NATS server has all of the stream: " + strings.Join(f.Stream.Behind, ", "),
		"bring that server back before another one is lost", "One of three NATS servers is lost",
	}
}

func serveUnready(f *Facts) *Advice {
	if f.Serve == nil || f.Serve.Ready {
		return nil
	}
	return &Advice{
		"pganalytics serve on this host is not ready: " + f.Serve.Detail,
		"start it, or see its log", "A service is not ready",
	}
}

func collectorsLocked(f *Facts) *Advice {
	if f.Collectors == nil || f.Collectors.Locked == 0 {
		return nil
	}
	return &Advice{
		fmt.Sprintf("%d collectors are locked: their identity has two holders", f.Collectors.Locked),
		"pganalytics collectors list --status locked", "A collector's host was restored from a snapshot",
	}
}

func deadLetters(f *Facts) *Advice {
	if f.Stream == nil || f.Stream.DeadLetters == 0 {
		return nil
	}
	return &Advice{
		fmt.Sprintf("%d batches lie in the dead letters: they were accepted and are not stored", f.Stream.DeadLetters),
		"pganalytics deadletters list", "Dead letters",
	}
}

func certificatesEnd(f *Facts) *Advice {
	if f.Collectors == nil || f.Collectors.Expiring == 0 {
		return nil
	}
	return &Advice{
		fmt.Sprintf("the certificates of %d collectors end within a day or have ended: they do not renew", f.Collectors.Expiring),
		"see whether they reach authsvc: pganalytics collectors list", "Collectors are offline",
	}
}

func collectorsOffline(f *Facts) *Advice {
	if f.Collectors == nil || f.Collectors.Offline == 0 || f.Database.Ingesters == 0 {
		return nil // without ingesters all of them look offline
	}
	return &Advice{
		fmt.Sprintf("%d collectors are offline: nothing of them was stored for 3 minutes", f.Collectors.Offline),
		"pganalytics collectors list --status offline", "Collectors are offline",
	}
}

func holdForgotten(f *Facts) *Advice {
	hold := f.hold(func(h Hold) bool { return h.Name != Gap && time.Duration(h.Age) > heldAbove })
	if hold == nil {
		return nil
	}
	return &Advice{
		fmt.Sprintf("hold %s by %s keeps the stream from %d on since %s", hold.Name, hold.By, hold.From, hold.Age),
		"finish what it was taken for; a replay: pganalytics replay --resume", "The stream is full",
	}
}

func (f *Facts) hold(which func(Hold) bool) *Hold {
	if f.Stream == nil {
		return nil
	}
	for i := range f.Stream.Holds {
		if which(f.Stream.Holds[i]) {
			return &f.Stream.Holds[i]
		}
	}
	return nil
}
