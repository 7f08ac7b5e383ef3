package deploytest

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testnet"
)

// host says where on this host is what a container would have: its mounts, and
// the addresses of all services.
type host struct {
	t         *testing.T
	project   *types.Project
	dir       string
	addresses map[string]string // "gateway:8444" → where it listens here
	paths     map[string]map[string]string
}

func newHost(t *testing.T, project *types.Project) *host {
	t.Helper()
	h := &host{t: t, project: project, dir: t.TempDir(), addresses: map[string]string{}, paths: map[string]map[string]string{}}
	for name, s := range project.Services {
		h.paths[name] = h.mounts(s)
		for _, port := range listened(t, s) {
			h.addresses[name+":"+port] = testnet.FreeAddress(t)
		}
	}
	return h
}

// mounts maps paths in the container to paths here. Volumes are shared, and so
// are directories; a file is the service's own copy.
func (h *host) mounts(s types.ServiceConfig) map[string]string {
	paths := map[string]string{}
	own := filepath.Join(h.dir, s.Name)
	require.NoError(h.t, os.MkdirAll(own, 0o700))
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			paths[v.Target] = filepath.Join(own, filepath.Base(v.Target))
			continue
		}
		paths[v.Target] = filepath.Join(h.dir, "volumes", v.Source)
		require.NoError(h.t, os.MkdirAll(paths[v.Target], 0o700))
	}
	for _, secret := range s.Secrets {
		paths["/run/secrets/"+secret.Source] = filepath.Join(own, "secret-"+secret.Source)
	}
	return paths
}

// writeFiles puts the files that are mounted where the service finds them,
// with what they say about paths and addresses replaced too. Call it once all
// addresses are known.
func (h *host) writeFiles() {
	h.t.Helper()
	for name, s := range h.project.Services {
		for target, source := range files(h.project, s) {
			data, err := os.ReadFile(source)
			require.NoError(h.t, err)
			require.NoError(h.t, os.WriteFile(h.paths[name][target], []byte(h.rewrite(name, string(data))), 0o600))
		}
	}
}

// files maps the files that a service mounts to where they lie in the checkout.
func files(project *types.Project, s types.ServiceConfig) map[string]string {
	found := map[string]string{}
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			found[v.Target] = v.Source
		}
	}
	for _, secret := range s.Secrets {
		found["/run/secrets/"+secret.Source] = project.Secrets[secret.Source].File
	}
	return found
}

var address = regexp.MustCompile(`([a-z0-9.-]+):(\d+)`)

// rewrite replaces what a service says about paths and addresses.
func (h *host) rewrite(service, text string) string {
	paths := h.paths[service]
	for _, target := range slices.Backward(slices.Sorted(maps.Keys(paths))) { // the longer before its beginning
		whole := regexp.MustCompile(`(^|[^\w./-])` + regexp.QuoteMeta(target) + `($|[^\w-])`)
		text = whole.ReplaceAllString(text, "${1}"+paths[target]+"${2}")
	}
	return address.ReplaceAllStringFunc(text, func(found string) string {
		name, port, _ := strings.Cut(found, ":")
		if name == "0.0.0.0" || name == "127.0.0.1" {
			name = service
		}
		if here, ok := h.addresses[name+":"+port]; ok {
			return here
		}
		return found
	})
}

// command returns what the service runs.
func (h *host) command(service string) []string {
	s := h.project.Services[service]
	var args []string
	for _, arg := range slices.Concat(s.Entrypoint, s.Command) {
		args = append(args, h.rewrite(service, arg))
	}
	return args
}

// environment returns the variables that the service has.
func (h *host) environment(service string) map[string]string {
	variables := map[string]string{}
	for name, value := range h.project.Services[service].Environment {
		if value != nil {
			variables[name] = h.rewrite(service, *value)
		}
	}
	return variables
}

var (
	listens = regexp.MustCompile(`\b0\.0\.0\.0:(\d+)`)
	probes  = regexp.MustCompile(`^http://127\.0\.0\.1:(\d+)/`)
)

// listened returns the ports that a service listens on, as its command and its
// files say, and that of the admin listener.
func listened(t *testing.T, s types.ServiceConfig) []string {
	t.Helper()
	if s.Name == database {
		return []string{"5432"} // the image's
	}
	ports := map[string]bool{}
	texts := slices.Clone(s.Command)
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			data, err := os.ReadFile(v.Source)
			require.NoError(t, err)
			texts = append(texts, string(data))
		}
	}
	for _, text := range texts {
		for _, m := range listens.FindAllStringSubmatch(text, -1) {
			ports[m[1]] = true
		}
	}
	if m := probes.FindStringSubmatch(probe(s)); m != nil && ours(s) {
		ports[m[1]] = true // of the admin listener, which has a default
	}
	return slices.Sorted(maps.Keys(ports))
}

// probe returns the last word of the health check: the URL, where it has one.
func probe(s types.ServiceConfig) string {
	if s.HealthCheck == nil || len(s.HealthCheck.Test) == 0 {
		return ""
	}
	return s.HealthCheck.Test[len(s.HealthCheck.Test)-1]
}

// Services with an image of their own.
const (
	database = "timescaledb"
	stream   = "nats"
)

// ours says whether the service runs one of this repository's programs.
func ours(s types.ServiceConfig) bool { return s.Build != nil }

// oneShot says whether the service is expected to end.
func oneShot(s types.ServiceConfig) bool { return s.Restart == types.RestartPolicyNo }
