package soft

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

func newTestKeys(t testing.TB) (keys, []byte) {
	t.Helper()
	k := keys{attestation: newKey(t), sealing: newSealingKey()}
	text, err := k.encode()
	if err != nil {
		t.Fatal(err)
	}
	return k, text
}

func TestOneDaemonADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	first, err := NewDaemon(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewDaemon(Config{Dir: dir}); !errors.Is(err, wire.Unavailable) {
		t.Errorf("a second daemon: got %v, want %v", err, wire.Unavailable)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := NewDaemon(Config{Dir: dir})
	if err != nil {
		t.Fatalf("after the first is gone: %v", err)
	}
	defer second.Close()
	if second.RootDigest() != first.RootDigest() {
		t.Errorf("got root %v, want %v as before", second.RootDigest(), first.RootDigest())
	}
}

func TestNoDirectory(t *testing.T) {
	if _, err := NewDaemon(Config{}); !errors.Is(err, wire.BadRequest) {
		t.Errorf("got %v, want %v", err, wire.BadRequest)
	}
}

func TestKeyFileIsPrivate(t *testing.T) {
	dir := t.TempDir()
	d, err := NewDaemon(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s: got mode %v, want -rw-------", entry.Name(), mode)
		}
	}
	if len(entries) != 2 {
		t.Errorf("got %v, want keys.pem and lock", entries)
	}
}

func TestDamagedKeysAreRefusedAndKept(t *testing.T) {
	_, text := newTestKeys(t)
	_, other := newTestKeys(t)
	half := len(text) / 2
	for _, c := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{
		{"empty", nil, 0o600},
		{"cut", text[:half], 0o600},
		{"one block", text[:bytes.LastIndex(text, []byte("-----BEGIN"))], 0o600},
		{"more", append(bytes.Clone(text), other...), 0o600},
		{"text before", append([]byte("x\n"), text...), 0o600},
		{"open to the group", text, 0o640},
		{"open to all", text, 0o604},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "keys.pem")
			if err := os.WriteFile(path, c.text, c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := NewDaemon(Config{Dir: dir}); !errors.Is(err, wire.StoreForeign) {
				t.Errorf("got %v, want %v", err, wire.StoreForeign)
			}
			if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, c.text) {
				t.Errorf("the file was changed: %v", err)
			}
			lock, err := lockDir(dir)
			if err != nil {
				t.Fatalf("the directory stays locked: %v", err)
			}
			lock.Close()
		})
	}
}

func FuzzParseKeys(f *testing.F) {
	_, text := newTestKeys(f)
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parseKeys(text)
		if err != nil {
			return
		}
		if again, err := k.encode(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("another encoding was read: %v", err)
		}
	})
}
