package deploytest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// checker gathers what is wrong with a checkout.
type checker struct {
	project *types.Project
	host    *host
	dir     string
	found   []string
}

func (c *checker) check(ok bool, format string, args ...any) {
	if !ok {
		c.found = append(c.found, fmt.Sprintf(format, args...))
	}
}

// service checks what concerns one service alone.
func (c *checker) service(s types.ServiceConfig) {
	c.image(s)
	c.containment(s)
	c.mounts(s)
	c.order(s)
	c.memory(s)
	for _, p := range s.Ports {
		c.check(p.HostIP == "127.0.0.1", "%s: port %d is published beyond loopback: %q", s.Name, p.Target, p.HostIP)
		_, ok := c.host.addresses[fmt.Sprintf("%s:%d", s.Name, p.Target)]
		c.check(ok, "%s: publishes port %d and does not listen there", s.Name, p.Target)
	}
	for _, text := range c.texts(s) {
		c.peers(s, text)
		c.paths(s, text)
	}
}

var pinned = regexp.MustCompile(`:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?$`)

func (c *checker) image(s types.ServiceConfig) {
	if !ours(s) {
		c.check(pinned.MatchString(s.Image), "%s: image %s is not pinned", s.Name, s.Image)
		return
	}
	_, err := os.Stat(filepath.Join(s.Build.Context, "Dockerfile"))
	c.check(err == nil && s.Build.Context == c.dir, "%s: nothing to build in %s", s.Name, s.Build.Context)
}

func (c *checker) containment(s types.ServiceConfig) {
	c.check(s.ReadOnly, "%s: root file system can be written", s.Name)
	c.check(slices.Equal(s.CapDrop, []string{"ALL"}) && len(s.CapAdd) == 0, "%s: has capabilities", s.Name)
	c.check(slices.Contains(s.SecurityOpt, "no-new-privileges:true"), "%s: may gain privileges", s.Name)
	c.check(!s.Privileged, "%s: is privileged", s.Name)
}

func (c *checker) mounts(s types.ServiceConfig) {
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			info, err := os.Stat(v.Source)
			c.check(err == nil && info.Mode().IsRegular(), "%s: no file %s", s.Name, v.Source)
			c.check(v.ReadOnly, "%s: may write to %s", s.Name, v.Source)
			continue
		}
		if ours(s) {
			c.check(c.fileHas("Dockerfile", v.Target+" ", v.Target+"\n"),
				"%s: the image has no directory %s, so the volume would be root's", s.Name, v.Target)
		}
	}
}

func (c *checker) fileHas(name string, texts ...string) bool {
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	return err == nil && slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(string(data), s) })
}

func (c *checker) order(s types.ServiceConfig) {
	c.check(oneShot(s) || s.HealthCheck != nil, "%s: has no health check", s.Name)
	c.check(oneShot(s) || s.Restart == types.RestartPolicyUnlessStopped, "%s: does not come back", s.Name)
	for name, d := range s.DependsOn {
		other := c.project.Services[name]
		switch d.Condition {
		case types.ServiceConditionHealthy:
			c.check(other.HealthCheck != nil, "%s: waits for the health of %s, which has no check", s.Name, name)
		case types.ServiceConditionCompletedSuccessfully:
			c.check(oneShot(other), "%s: waits for the end of %s, which does not end", s.Name, name)
		default:
			c.check(false, "%s: does not wait until %s is ready", s.Name, name)
		}
	}
}

func (c *checker) memory(s types.ServiceConfig) {
	c.check(s.MemLimit > 0, "%s: has no limit of memory", s.Name)
	limit, ok := s.Environment["GOMEMLIMIT"]
	if !ok {
		return
	}
	var mib int64
	_, err := fmt.Sscanf(*limit, "%dMiB", &mib)
	c.check(err == nil && mib<<20 < int64(s.MemLimit), "%s: GOMEMLIMIT %s is not below the limit of %d bytes", s.Name, *limit, s.MemLimit)
}

// texts returns all that a service is told, and the files it reads.
func (c *checker) texts(s types.ServiceConfig) []string {
	texts := slices.Concat(s.Entrypoint, s.Command)
	if s.HealthCheck != nil {
		texts = append(texts, s.HealthCheck.Test...)
	}
	for _, value := range s.Environment {
		texts = append(texts, *value)
	}
	for _, source := range files(c.project, s) {
		if data, err := os.ReadFile(source); err == nil {
			texts = append(texts, string(data))
		}
	}
	return texts
}

var peer = regexp.MustCompile(`(https?|nats|postgres)://(?:[^@/\s]*@)?([a-z0-9.-]+):(\d+)`)

// peers checks the addresses in a text: some service listens there, the two
// share a network, and the certificate has the name.
func (c *checker) peers(s types.ServiceConfig, text string) {
	for _, m := range peer.FindAllStringSubmatch(text, -1) {
		scheme, name, port := m[1], m[2], m[3]
		if name == "127.0.0.1" {
			name = s.Name
		}
		_, ok := c.host.addresses[name+":"+port]
		c.check(ok, "%s: nobody listens at %s:%s", s.Name, name, port)
		c.check(name == s.Name || c.meet(s.Name, name) || told(s.Name), "%s: has no network with %s", s.Name, name)
		c.check(scheme != "https" || slices.Contains(c.names(), name), "%s: the certificate has no name %s", s.Name, name)
	}
}

// told are services that pass on addresses which they do not use themselves.
func told(service string) bool { return service == "authsvc" || service == "operator" }

func (c *checker) meet(a, b string) bool {
	for network := range c.project.Services[a].Networks {
		if _, ok := c.project.Services[b].Networks[network]; ok {
			return true
		}
	}
	return false
}

// names are those in the listeners' certificate.
func (c *checker) names() []string {
	for _, arg := range c.project.Services["pki"].Command {
		if list, ok := strings.CutPrefix(arg, "--hosts="); ok {
			return strings.Split(list, ",")
		}
	}
	return nil
}

var mounted = regexp.MustCompile(`(?:^|[^\w./-])(/(?:run/secrets|var/lib/pganalytics|etc/pganalytics|etc/nats)(?:/[\w.-]+)*)`)

// paths checks that what a text names is mounted.
func (c *checker) paths(s types.ServiceConfig, text string) {
	for _, m := range mounted.FindAllStringSubmatch(text, -1) {
		under := false
		for target := range c.host.paths[s.Name] {
			under = under || m[1] == target || strings.HasPrefix(m[1], target+"/")
		}
		c.check(under, "%s: %s is not mounted", s.Name, m[1])
	}
}

var secretName = regexp.MustCompile(`(?i)password|secret|token|conninfo|database_url`)

// secrets checks that every secret is used and that none is written down.
func (c *checker) secrets() {
	used := map[string]bool{}
	for name, s := range c.project.Services {
		texts := strings.Join(c.texts(s), "\n")
		for _, secret := range s.Secrets {
			used[secret.Source] = true
			c.check(strings.Contains(texts, "/run/secrets/"+secret.Source), "%s: has secret %s and does not use it", name, secret.Source)
		}
	}
	for name, secret := range c.project.Secrets {
		c.check(used[name], "secret %s is nobody's", name)
		info, err := os.Stat(secret.File)
		c.check(err == nil && info.Size() > 20, "secret %s is not made by make-secrets.sh", name)
	}
	plain, err := load(c.dir, loader.WithDiscardEnvFiles, func(o *loader.Options) { o.SkipResolveEnvironment = true })
	c.check(err == nil, "%v", err)
	if err != nil {
		return
	}
	for name, s := range plain.Services {
		for variable, value := range s.Environment {
			c.check(!secretName.MatchString(variable) || value != nil && strings.HasPrefix(*value, "/run/secrets/"),
				"%s: %s stands in the compose file", name, variable)
		}
		for _, arg := range slices.Concat(s.Entrypoint, s.Command) {
			flag, value, _ := strings.Cut(arg, "=")
			c.check(!secretName.MatchString(flag) || value == "" || strings.HasPrefix(value, "/run/secrets/") || strings.HasPrefix(value, "https://"),
				"%s: %s stands in the compose file", name, flag)
		}
	}
	for _, name := range []string{"/deploy/secrets\n", "/.env\n"} {
		c.check(c.fileHas(".dockerignore", name), "%q goes into the image", strings.TrimSpace(name))
	}
}

var from = regexp.MustCompile(`(?m)^FROM (?:--\S+ )*(\S+)`)

func (c *checker) dockerfile() {
	data, err := os.ReadFile(filepath.Join(c.dir, "Dockerfile"))
	c.check(err == nil, "%v", err)
	for _, m := range from.FindAllStringSubmatch(string(data), -1) {
		c.check(pinned.MatchString(m[1]), "Dockerfile: image %s is not pinned", m[1])
	}
	c.check(strings.Contains(string(data), "\nUSER 65532"), "Dockerfile: programs run as root")
	c.check(strings.Contains(string(data), "CGO_ENABLED=0"), "Dockerfile: programs are not static")
}

// database checks what the server must have loaded: families read it.
func (c *checker) database() {
	c.check(slices.Contains(c.project.Services[database].Command, "shared_preload_libraries=timescaledb,pg_stat_statements"),
		"%s: does not load pg_stat_statements", database)
}

// volumes checks that nothing is declared and not used.
func (c *checker) volumes() {
	used := map[string]bool{}
	for _, s := range c.project.Services {
		for _, v := range s.Volumes {
			used[v.Source] = true
		}
	}
	for name := range c.project.Volumes {
		c.check(used[name], "volume %s is nobody's", name)
	}
}
