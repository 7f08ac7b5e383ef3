// Command pganalytics is the operators' command line. `serve` runs all
// services in one process, `demo` shows the system at work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/daemon"
)

type commands struct {
	Init        initCmd        `cmd:"" help:"Make the authorities' keys and the listeners' certificate."`
	Migrate     migrateCmd     `cmd:"" help:"Bring database and streams up to date."`
	Serve       serveCmd       `cmd:"" help:"Run all services in one process, with the stream in it."`
	Status      statusCmd      `cmd:"" help:"Show how the whole system is, and what to do first when something is wrong."`
	Stream      streamCmd      `cmd:"" help:"Work with the stream of batches."`
	Query       queryCmd       `cmd:"" help:"Run one reading SQL statement on the stored metrics."`
	Replay      replayCmd      `cmd:"" help:"Store again what the database lacks of the stream, after a restore or a failover."`
	Verify      verifyCmd      `cmd:"" help:"Find out whether everything that was accepted is where it belongs."`
	Deadletters deadlettersCmd `cmd:"" help:"Work with the batches that could not be stored."`
	Batch       batchCmd       `cmd:"" help:"Find one batch, and take one out that was stored."`
	CA          caCmd          `cmd:"" name:"ca" help:"Show and replace the authorities and the signing key."`
	Collectors  collectorsCmd  `cmd:"" help:"Work with collectors."`
	Config      configCmd      `cmd:"" help:"Choose what collectors read."`
	Login       loginCmd       `cmd:"" help:"Log in, for the commands that act as a user."`
	Logout      logoutCmd      `cmd:"" help:"End the session."`
	Whoami      whoamiCmd      `cmd:"" help:"Tell whose session it is."`
	Password    passwordCmd    `cmd:"" help:"Change the own password."`
	Users       usersCmd       `cmd:"" help:"Work with users."`
	Tokens      tokensCmd      `cmd:"" help:"Work with API tokens."`
	Audit       auditCmd       `cmd:"" help:"Show who did what."`
	Demo        demoCmd        `cmd:"" help:"Run the whole system on this host, with a collector that watches its own database."`
	Version     versionCmd     `cmd:"" help:"Show which build this is."`
}

// console is what a command may use of the outside.
type console struct {
	ctx            context.Context
	stdout, stderr io.Writer
}

// errPartial ends a command that has said itself what it found or left undone.
var errPartial = found{errors.New("not all is done")}

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if !errors.Is(err, errPartial) {
		fmt.Fprintln(os.Stderr, "pganalytics:", err)
	}
	os.Exit(exitCode(err))
}

// found is the error of a command that did its work and must tell scripts of
// something: not all is as it should be. Its exit code is 2.
type found struct{ error }

func exitCode(err error) int {
	if _, ok := errors.AsType[found](err); ok {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	parsed, err := cmdline.Parse("pganalytics", "Fleet-wide PostgreSQL monitoring that never loses a metric.", &commands{}, args, stdout, stderr)
	if errors.Is(err, cmdline.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return parsed.Run(console{ctx, stdout, stderr})
}
