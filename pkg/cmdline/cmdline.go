// Package cmdline reads the command line and the environment of every binary,
// into one struct of flags each. Nothing else reads the environment.
package cmdline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// envPrefix begins the name of every environment variable that we read.
const envPrefix = "PGANALYTICS"

// ErrHelp says that the command line asked for help or a version, which has
// been printed.
var ErrHelp = errors.New("help requested")

// Parse fills cfg, a struct with kong's tags, from the command line and from
// the environment: --load-rows is also PGANALYTICS_LOAD_ROWS. A variable with
// that prefix which no flag knows is refused, because a misspelt one would
// otherwise be silently without effect.
func Parse(name, description string, cfg any, args []string, stdout, stderr io.Writer) (*kong.Context, error) {
	helped := false
	parser, err := kong.New(cfg,
		kong.Name(name),
		kong.Description(description),
		kong.DefaultEnvars(envPrefix),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ShortUsageOnError(),
	)
	if err != nil {
		return nil, fmt.Errorf("command line of %s: %w", name, err)
	}
	kctx, err := parser.Parse(args)
	if helped {
		return nil, ErrHelp
	}
	if err != nil {
		return nil, err
	}
	return kctx, unknownVariables(parser.Model.Node)
}

// secretVariables are read by Secret fields and never have a flag.
var secretVariables = []string{"PGANALYTICS_DATABASE_URL"}

func unknownVariables(root *kong.Node) error {
	known := slices.Clone(secretVariables)
	_ = kong.Visit(root, func(n kong.Visitable, next kong.Next) error {
		if f, ok := n.(*kong.Flag); ok {
			known = append(known, f.Envs...)
		}
		return next(nil)
	})
	var errs []error
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(key, envPrefix+"_") && !slices.Contains(known, key) {
			errs = append(errs, fmt.Errorf("%s: no such setting", key))
		}
	}
	return errors.Join(errs...)
}

// Defaults fills cfg, a struct with kong's tags, with the defaults that stand
// there.
func Defaults(cfg any) error { return kong.ApplyDefaults(cfg) }

// Secret reads a setting that must not stand on a command line: from file if
// given, else from the first of the variables that is set. It returns "" when
// none is.
func Secret(file string, variables ...string) (string, error) {
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		return strings.TrimSpace(string(data)), nil
	}
	for _, v := range variables {
		if s := os.Getenv(v); s != "" {
			return s, nil
		}
	}
	return "", nil
}
