package service

import (
	"context"
	"os"
	"slices"
	"time"

	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// watchEvery is how soon a changed file is noticed.
const watchEvery = time.Second

// fileStamp tells two contents of a file apart.
type fileStamp struct {
	modified time.Time
	size     int64
}

// stamps returns one for each file; a file that is not there has the zero one.
func stamps(files []string) []fileStamp {
	all := make([]fileStamp, len(files))
	for i, name := range files {
		if info, err := os.Stat(name); err == nil {
			all[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

// watch loads the files again whenever one of them has changed. What does not
// load is told once and tried again: another of the files may be about to
// follow. Until then what was loaded before stays in use.
func (p *process) watch(name string, files []string, load func() error) {
	p.part("watch "+name, func(ctx context.Context) error {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		var loaded, told []fileStamp // loaded: nil, so that no change since the caller's own loading is missed
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			now := stamps(files)
			if slices.Equal(now, loaded) {
				continue
			}
			err := load()
			switch {
			case err == nil:
				if loaded != nil {
					p.log.Info("files read again", "files", name)
				}
				loaded = now
			case !slices.Equal(now, told):
				told = now
				p.log.Error("files not read again; what they held before stays in use", "files", name, "err", err)
			}
		}
	})
}

// followTrust lets the verifier trust what the files hold, as they change.
func (p *process) followTrust(trust TrustFlags, snapshot *identity.Snapshot, verifier *identity.Verifier) {
	p.watch("trust", []string{trust.CollectorCA, trust.IssuerRoot}, func() error {
		anchors, err := ca.LoadCertificates(trust.CollectorCA)
		if err != nil {
			return err
		}
		roots, err := ca.LoadRoots(trust.IssuerRoot)
		if err != nil {
			return err
		}
		if err := verifier.TrustCollectorCAs(anchors); err != nil {
			return err
		}
		return snapshot.TrustRoots(roots)
	})
}

// followAuthority lets the authority issue and sign with what its directory
// holds, as it changes, and keeps the signing key young.
func (p *process) followAuthority(authority *ca.Authority) {
	p.watch("authority", authority.Files(), authority.Reload)
	p.daily("renew the signing key", func() error { return ca.RenewSigningKey(authority.Dir(), time.Now()) })
}

// daily does something once a day; an error is a matter for the log.
func (p *process) daily(what string, do func() error) {
	p.part(what, func(ctx context.Context) error {
		tick := time.NewTicker(24 * time.Hour)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if err := do(); err != nil {
				p.log.Error("daily work", "work", what, "err", err)
			}
		}
	})
}
