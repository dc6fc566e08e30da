package soft

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// ask sends the daemon a message that no honest launcher sends, and returns the refusal.
func (e tee) ask(t *testing.T, message any, files ...*os.File) error {
	t.Helper()
	p := &Process{conn: mustDial(e.socket)}
	defer p.conn.Close()
	if err := sendMessage(p.conn, message, files...); err != nil {
		t.Fatal(err)
	}
	reply, err := p.reply()
	if err == nil {
		t.Fatalf("launched process %d", reply.PID)
	}
	return err
}

func file(t *testing.T, name, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

// large returns a sparse file of one byte over the limit.
func large(t *testing.T) *os.File {
	t.Helper()
	f := file(t, "large", "")
	if err := os.Truncate(f.Name(), maxProgram+1); err != nil {
		t.Fatal(err)
	}
	return f
}

func pipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

func settings(name, value string) launchMessage {
	return launchMessage{Settings: map[string]string{name: value}}
}

func TestDaemonRefuses(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	null := open(t, os.DevNull)
	good := self(t)
	elf := file(t, "cut", "\x7fELF")
	script := file(t, "script", "#!/bin/sh\n")
	for _, c := range []struct {
		name    string
		message any
		program *os.File
		want    wire.Reason
	}{
		{"setting LD_PRELOAD", settings("LD_PRELOAD", "/evil.so"), good, wire.BadRequest},
		{"setting PATH", settings("PATH", "/bin"), good, wire.BadRequest},
		{"setting GODEBUG", settings("GODEBUG", "x=1"), good, wire.BadRequest},
		{"setting without a name", settings("", "x"), good, wire.BadRequest},
		{"setting that is the prefix", settings("COHORT_", "x"), good, wire.BadRequest},
		{"setting in lower case", settings("COHORT_x", "x"), good, wire.BadRequest},
		{"setting that hides another", settings("COHORT_A=1\x00LD_PRELOAD", "x"), good, wire.BadRequest},
		{"setting with =", settings("COHORT_A=B", "x"), good, wire.BadRequest},
		{"setting of the device", settings(variableFD, "4"), good, wire.BadRequest},
		{"setting with a zero byte", settings("COHORT_A", "x\x00y"), good, wire.BadRequest},
		{"argument with a zero byte", launchMessage{Args: []string{"a", "x\x00y"}}, good, wire.BadRequest},
		{"relative directory", launchMessage{Dir: "tmp"}, good, wire.BadRequest},
		{"unknown key", map[string]any{"env": []string{"LD_PRELOAD=x"}}, good, wire.Malformed},
		{"no object", "launch", good, wire.Malformed},
		{"script", launchMessage{}, script, wire.Malformed},
		{"text", launchMessage{}, file(t, "text", "hello"), wire.Malformed},
		{"empty file", launchMessage{}, file(t, "empty", ""), wire.Malformed},
		{"cut ELF", launchMessage{}, elf, wire.Malformed},
		{"over 1 GiB", launchMessage{}, large(t), wire.TooLarge},
		{"pipe", launchMessage{}, pipe(t), wire.BadRequest},
		{"directory", launchMessage{}, open(t, "testdata"), wire.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := e.ask(t, c.message, c.program, null, null, null); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("script as agent", func(t *testing.T) {
		if err := e.ask(t, launchMessage{}, good, null, null, null, script); !errors.Is(err, wire.Malformed) {
			t.Errorf("got %v, want %v", err, wire.Malformed)
		}
	})
	t.Run("no descriptors", func(t *testing.T) {
		if err := e.ask(t, launchMessage{}); !errors.Is(err, wire.BadRequest) {
			t.Errorf("got %v, want %v", err, wire.BadRequest)
		}
	})
	t.Run("too many descriptors", func(t *testing.T) {
		if err := e.ask(t, launchMessage{}, good, null, null, null, good, good, good, good); !errors.Is(err, wire.TooLarge) {
			t.Errorf("got %v, want %v", err, wire.TooLarge)
		}
	})
	// The daemon still serves after all these.
	e.claims(t, e.play(t, "report", LaunchRequest{}))
}

func TestScriptIsRefusedWithAHint(t *testing.T) {
	_, _, err := Measure(file(t, "script", "#!/bin/sh\n"), nil, nil)
	var r *wire.Refusal
	if !errors.As(err, &r) || !strings.Contains(r.Want, "build a binary") {
		t.Errorf("got %v, want a hint to build a binary", err)
	}
}

func TestLaunchRefusesBeforeItConnects(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	for name, r := range map[string]LaunchRequest{
		"setting":              {Program: self(t), Settings: map[string]string{"LD_PRELOAD": "x"}},
		"argument not UTF-8":   {Program: self(t), Args: []string{"\xff"}},
		"setting not UTF-8":    {Program: self(t), Settings: map[string]string{"COHORT_A": "\xff"}},
		"directory, not UTF-8": {Program: self(t), Dir: "/\xff"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := e.launch(t, r); !errors.Is(err, wire.BadRequest) {
				t.Errorf("got %v, want %v", err, wire.BadRequest)
			}
		})
	}
	long := LaunchRequest{Program: self(t), Args: []string{strings.Repeat("x", maxMessage)}}
	if _, err := e.launch(t, long); !errors.Is(err, wire.TooLarge) {
		t.Errorf("long arguments: got %v, want %v", err, wire.TooLarge)
	}
}

func TestNoDaemon(t *testing.T) {
	e := tee{socket: filepath.Join(shortDir(t), "s")}
	if _, err := e.launch(t, LaunchRequest{Program: self(t)}); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("got %v, want %v", err, wire.NotThisDevice)
	}
}

func TestLaunchGivesUpWithItsContext(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	ln, err := Listen(socket) // listens, but nothing serves
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			defer conn.Close()
		}
		cancel()
		io.Copy(io.Discard, conn)
	}()
	if _, err := Launch(ctx, socket, LaunchRequest{Program: self(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestTooManyChildren(t *testing.T) {
	d, err := NewDaemon(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	refused := func(rule string, asks bool) {
		t.Helper()
		near, far, err := devicePair()
		if err != nil {
			t.Fatal(err)
		}
		launcher, err := connOf(far)
		if err != nil {
			t.Fatal(err)
		}
		defer launcher.Close()
		if asks {
			if err := sendMessage(launcher, launchMessage{}); err != nil {
				t.Fatal(err)
			}
		}
		d.serveLauncher(t.Context(), near)
		if _, err := (&Process{conn: launcher}).reply(); !errors.Is(err, wire.TooMany) || !strings.Contains(err.Error(), rule) {
			t.Errorf("got %v, want %v of %s", err, wire.TooMany, rule)
		}
	}
	for range maxChildren {
		d.slots <- struct{}{}
	}
	refused("children", true)
	for range maxAsking { // launchers that connect and send nothing
		d.asking <- struct{}{}
	}
	refused("launchers", false)
}

func TestShutdownEndsIdleLaunchers(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	conn := mustDial(e.socket)
	defer conn.Close()
	e.play(t, "report", LaunchRequest{}) // then the first connection is served too
	e.end()
	var reply launchReply
	if err := receiveNoFiles(conn, &reply); err == nil && reply.Refusal == nil {
		t.Errorf("got %+v, want a refusal or the end", reply)
	}
	if _, err := os.Stat(e.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestServeRefusesOtherListeners(t *testing.T) {
	d, err := NewDaemon(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			conn.Close()
		}
	}()
	if err := d.Serve(t.Context(), ln); err == nil {
		t.Error("served a TCP listener")
	}
}

func TestListen(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("got mode %v, want -rw-------", mode)
	}
	if _, err := Listen(path); !errors.Is(err, wire.Unavailable) {
		t.Errorf("a live socket: got %v, want %v", err, wire.Unavailable)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	again.Close()
	plain := file(t, "plain", "keep")
	if _, err := Listen(plain.Name()); err == nil {
		t.Error("a plain file was replaced")
	}
	for _, n := range []int{0, maxSocketPath + 1} {
		if _, err := Listen(strings.Repeat("x", n)); !errors.Is(err, wire.BadRequest) {
			t.Errorf("path of %d bytes: got %v, want %v", n, err, wire.BadRequest)
		}
	}
	longest, err := Listen(dir + "/" + strings.Repeat("x", maxSocketPath-len(dir)-1))
	if err != nil {
		t.Fatalf("path of %d bytes: %v", maxSocketPath, err)
	}
	longest.Close()
}

func TestTheSealsOfAnImage(t *testing.T) {
	i, err := sealImage(self(t))
	if err != nil {
		t.Fatal(err)
	}
	defer i.file.Close()
	got, err := unix.FcntlInt(i.file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		t.Errorf("got seals %#x, %v, want %#x", got, err, seals)
	}
}
