package testpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Configure appends lines to postgresql.conf. They hold from the next start or reload on.
func (s *Server) Configure(settings ...string) {
	s.tb.Helper()
	s.appendTo("postgresql.conf", settings...)
}

// Allow puts lines before all others in pg_hba.conf, such as "local shop all reject", and reloads.
func (s *Server) Allow(lines ...string) {
	s.tb.Helper()
	path := filepath.Join(s.data(), "pg_hba.conf")
	before, err := os.ReadFile(path)
	must(s.tb, err)
	must(s.tb, os.WriteFile(path, append([]byte(strings.Join(lines, "\n")+"\n"), before...), 0o600))
	s.Reload()
}

// appendTo keeps the file's owner, for the server runs as somebody else when the test is root.
func (s *Server) appendTo(file string, lines ...string) {
	s.tb.Helper()
	f, err := os.OpenFile(filepath.Join(s.data(), file), os.O_APPEND|os.O_WRONLY, 0)
	must(s.tb, err)
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	must(s.tb, err)
	must(s.tb, f.Close())
}

// Start starts the server after Stop or Kill and returns when it takes sessions.
func (s *Server) Start() {
	s.tb.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		_ = os.Remove(filepath.Join(s.home, "log.start"))
		err = s.command("pg_ctl", "-D", s.data(), "-s", "-w", "-t", "60", "-l", filepath.Join(s.home, "log.start"),
			"-o", "-k "+s.home, "start")
		if err == nil {
			must(s.tb, os.Rename(filepath.Join(s.home, "log.start"), filepath.Join(s.home, "log"))) // it writes on
			return
		}
		text, readErr := os.ReadFile(filepath.Join(s.home, "log.start"))
		must(s.tb, readErr)
		if !strings.Contains(string(text), "pre-existing shared memory") && !strings.Contains(string(text), "postmaster.pid\" already exists") {
			s.tb.Fatalf("testpg: PostgreSQL %d does not start: %v\n%s", s.major, err, text)
		}
		// A killed server's processes are still ending.
	}
	s.tb.Fatalf("testpg: PostgreSQL %d does not start: %v", s.major, err)
}

// Stop shuts the server down in good order, ending all sessions.
func (s *Server) Stop() {
	s.tb.Helper()
	must(s.tb, s.command("pg_ctl", "-D", s.data(), "-s", "-w", "-t", "60", "-m", "fast", "stop"))
}

// Restart stops the server and starts it again.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.Start()
}

// Kill ends the server's main process with SIGKILL and returns when it is gone. Its other processes notice and end by
// themselves; the next Start recovers.
func (s *Server) Kill() {
	s.tb.Helper()
	pid := s.pid()
	must(s.tb, syscall.Kill(pid, syscall.SIGKILL))
	s.eventually("the killed server is gone", func() bool {
		inside, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return err != nil || inside != s.data()
	})
}

func (s *Server) pid() int {
	s.tb.Helper()
	text, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	must(s.tb, err)
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	must(s.tb, err)
	return pid
}

// Reload makes the server read its files again. It may take a moment.
func (s *Server) Reload() {
	s.tb.Helper()
	must(s.tb, s.command("pg_ctl", "-D", s.data(), "-s", "reload"))
}

// Promote ends a standby's recovery and returns when it is done.
func (s *Server) Promote() {
	s.tb.Helper()
	must(s.tb, s.command("pg_ctl", "-D", s.data(), "-s", "-w", "-t", "60", "promote"))
}

// Standby makes a copy of the running server that follows it by streaming, as a standby of the name and through a slot of
// the name, and starts it with settings besides the server's. It returns when it streams.
func (s *Server) Standby(name string, settings ...string) *Server {
	s.tb.Helper()
	standby := newServer(s.tb, s.major)
	conn := s.Connect("postgres")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := conn.Exec(ctx, "select pg_create_physical_replication_slot($1, true)", name)
	must(s.tb, err)
	label := s.copyTo(ctx, conn, standby)
	must(s.tb, standby.write("backup_label", label))
	must(s.tb, standby.write("standby.signal", ""))
	standby.Configure(append([]string{
		fmt.Sprintf("primary_conninfo = 'host=%s port=5432 user=postgres application_name=%s'", s.home, name),
		fmt.Sprintf("primary_slot_name = '%s'", name),
		"wal_receiver_status_interval = 1s",
	}, settings...)...)
	standby.Start()
	s.eventually("the standby streams", func() bool {
		return Value[bool](s, "postgres", "select exists (select from pg_stat_replication where application_name = $1 and state = 'streaming')", name)
	})
	return standby
}

// copyFiles takes the files of a running server, of which some come and go meanwhile.
func (s *Server) copyFiles(from string) error {
	const script = `mkdir -m 700 data && { tar -C "$1" -c --exclude=./postmaster.pid --exclude=./postmaster.opts --exclude='./pg_wal/*' \
  --exclude='./pg_replslot/*' --warning=no-file-changed --warning=no-file-removed --ignore-failed-read . || [ $? = 1 ]; } | tar -C data -x`
	cmd := exec.Command("sh", "-c", script, "sh", from)
	cmd.Dir = s.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(s.tb)}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the files of a server: %w %s", err, out)
	}
	return nil
}

// write makes a file of the data directory, which is the server's.
func (s *Server) write(name, text string) error {
	path := filepath.Join(s.data(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	if id := credential(s.tb); id != nil {
		return os.Chown(path, int(id.Uid), int(id.Gid))
	}
	return nil
}

// copyTo copies the files of the running server as its documentation says, and returns the label of the backup. (The
// packages have no pg_basebackup.)
func (s *Server) copyTo(ctx context.Context, conn *pgx.Conn, to *Server) (label string) {
	s.tb.Helper()
	begin, end := "select pg_backup_start('standby', true)", "select labelfile from pg_backup_stop(false)"
	if s.major < 15 {
		begin, end = "select pg_start_backup('standby', true, false)", "select labelfile from pg_stop_backup(false, false)"
	}
	_, err := conn.Exec(ctx, begin)
	must(s.tb, err)
	must(s.tb, to.copyFiles(s.data()))
	must(s.tb, conn.QueryRow(ctx, end).Scan(&label))
	return label
}

// eventually polls, for a server tells of what it does in no other way.
func (s *Server) eventually(what string, ok func() bool) {
	s.tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.tb.Fatalf("testpg: still not so: %s", what)
		}
	}
}
