// Package testdb starts Debian's PostgreSQL for tests: under an unprivileged user, on a socket in
// its own directory. The server ends when the test binary ends, in whatever way.
//
// [Database] returns an empty database (a schema) on the one server of the test binary.
// [NewServer] starts a server that a test may kill. If PostgreSQL is not installed, the test is
// skipped with that reason.
//
// It is for tests only: no package of the product imports it.
package testdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startWait is how long a server may take to respond, including recovery.
const startWait = 30 * time.Second

// Server is one PostgreSQL server with its own directory.
type Server struct {
	dir, bin string
	settings []string
	user     *syscall.Credential // nil: the user of the test
	guard    io.Closer           // the server ends when this is closed
	ended    chan struct{}       // closed when the server has ended
	numbers  atomic.Int64        // numbers the databases
}

var shared = sync.OnceValues(func() (*Server, error) { return start("fsync=off", "full_page_writes=off") })

// Database returns the address of a new database on the shared server.
func Database(t testing.TB) string {
	t.Helper()
	s, err := shared()
	skipIfMissing(t, err)
	return s.Database(t)
}

// NewServer starts a server for one test, with settings such as "fsync=off".
func NewServer(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := start(settings...)
	skipIfMissing(t, err)
	t.Cleanup(s.Stop)
	return s
}

var errMissing = errors.New("PostgreSQL is NOT INSTALLED: nothing of it is tested (Debian: postgresql)")

func skipIfMissing(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func start(settings ...string) (*Server, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return nil, errMissing
	}
	s := &Server{bin: filepath.Dir(found[0]), settings: settings}
	if err := s.makeDirectory(); err != nil {
		return nil, err
	}
	initdb := exec.Command(filepath.Join(s.bin, "initdb"), "--no-sync", "--no-instructions", "--auth=trust", "--username=cohort",
		"--encoding=UTF8", "--locale=C", "--pgdata="+s.dataDir())
	initdb.SysProcAttr, initdb.Dir = &syscall.SysProcAttr{Credential: s.user}, s.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.Start()
}

// makeDirectory makes the directory, and chooses the user nobody when the test runs as root,
// which PostgreSQL refuses.
func (s *Server) makeDirectory() (err error) {
	if s.dir, err = os.MkdirTemp("", "pg"); err != nil || os.Getuid() != 0 {
		return err
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		return err
	}
	s.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	return os.Chown(s.dir, uid, uid)
}

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

// Start starts the server and waits until it responds. A shell ends the server and removes its
// directory when the test's end of the pipe is closed, by the test or by its death.
func (s *Server) Start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	const script = `dir=$1; shift; "$@" </dev/null & read -r keep; kill -QUIT $!; wait; [ "$keep" ] || rm -rf "$dir"`
	args := []string{"-c", script, "sh", s.dir, filepath.Join(s.bin, "postgres"), "-D", s.dataDir(), "-k", s.dir,
		"-c", "listen_addresses=", "-c", "max_connections=300", "-c", "shared_buffers=16MB"}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.SysProcAttr, cmd.Dir, cmd.Stderr = &syscall.SysProcAttr{Credential: s.user, Setpgid: true}, s.dir, log
	if s.guard, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.ended = make(chan struct{})
	go func() { cmd.Wait(); close(s.ended) }()
	return s.waitUntilReady()
}

func (s *Server) waitUntilReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, s.address(""))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the server ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// Stop ends the server permanently.
func (s *Server) Stop() {
	s.guard.Close()
	<-s.ended
}

// Kill kills the postmaster, as a crash does: data in memory is lost, and [Server.Start] recovers
// the rest. It accepts a server that has already ended.
func (s *Server) Kill() error {
	pid, err := s.postmasterPID()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	io.WriteString(s.guard.(io.Writer), "keep\n")
	<-s.ended
	return s.waitForChildren()
}

// postmasterPID reads the process id of the postmaster.
func (s *Server) postmasterPID() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.dataDir(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strconv.Atoi(line)
}

// waitForChildren waits until the children of a killed postmaster have ended: until then no new
// server can start in the directory.
func (s *Server) waitForChildren() error {
	for range 1000 {
		all, err := filepath.Glob("/proc/[0-9]*/cwd")
		if err != nil {
			return err
		}
		left := false
		for _, cwd := range all {
			if at, err := os.Readlink(cwd); err == nil && at == s.dataDir() {
				left = true
			}
		}
		if !left {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("children of the killed postmaster live on")
}

// Database returns the address of a new database: a schema of its own, which is much faster to
// create than a database.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprint("d", s.numbers.Add(1))
	ExecStatement(t, s.address(""), "CREATE SCHEMA "+name)
	return s.address(name)
}

func (s *Server) address(schema string) string {
	return (&url.URL{Scheme: "postgres", User: url.User("cohort"), Path: "/postgres",
		RawQuery: url.Values{"host": {s.dir}, "search_path": {schema}}.Encode()}).String()
}

// CopyDatabase returns the address of a copy of a database as of one moment.
func CopyDatabase(t testing.TB, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	from := query.Get("search_path")
	to := fmt.Sprint(from, "c", time.Now().UnixNano())
	ExecStatement(t, dsn, strings.NewReplacer("FROM_", from, "TO_", to).Replace(`DO $$ DECLARE x record; BEGIN
		CREATE SCHEMA TO_;
		FOR x IN SELECT tablename AS name FROM pg_tables WHERE schemaname = 'FROM_' LOOP
			EXECUTE format('CREATE TABLE TO_.%I (LIKE FROM_.%I INCLUDING ALL)', x.name, x.name);
			EXECUTE format('INSERT INTO TO_.%I OVERRIDING SYSTEM VALUE SELECT * FROM FROM_.%I', x.name, x.name);
		END LOOP;
		FOR x IN SELECT table_name AS name, column_name AS col FROM information_schema.columns WHERE table_schema = 'TO_' AND is_identity = 'YES' LOOP
			EXECUTE format('SELECT setval(pg_get_serial_sequence(''TO_.%I'', %L), coalesce(max(%I), 0) + 1, false) FROM TO_.%I', x.name, x.col, x.col, x.name);
		END LOOP;
	END $$`))
	query.Set("search_path", to)
	u.RawQuery = query.Encode()
	return u.String()
}

// ExecStatement runs a statement on the database without the store.
func ExecStatement(t testing.TB, dsn, statement string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	if _, err := c.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}
