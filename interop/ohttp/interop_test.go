package ohttp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/circl/hpke"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/openpcc/ohttp"
	"github.com/openpcc/ohttp/encoding/bhttp"
)

// suites are what our key configurations offer.
var suites = []struct {
	name string
	kem  hpke.KEM
	aead hpke.AEAD
}{
	{"MLKEM768-X25519", hpke.KEM_XWING, hpke.AEAD_AES256GCM},
	{"X25519", hpke.KEM_X25519_HKDF_SHA256, hpke.AEAD_AES128GCM},
}

// sizes are of content, in bytes: none, in one chunk, in many.
var sizes = []int{0, 11, 20_000, 150_000}

// TestTheirClient sends requests of a foreign client through the gateway of a
// running cluster to its units, under the keys that `cohort trust --ohttp` wrote.
func TestTheirClient(t *testing.T) {
	bin, info := startDev(t)
	file := filepath.Join(t.TempDir(), "keys")
	out, err := exec.Command(filepath.Join(bin, "cohort"), "trust", "-o", "json", "--authority", info.Authority, "--genesis", info.Genesis, "--task", info.Task,
		"--out", filepath.Join(t.TempDir(), "root.pem"), "--state", filepath.Join(t.TempDir(), "seen"), "--ohttp", file, "--gateway", info.Gateway).Output()
	if err != nil {
		t.Fatalf("cohort trust --ohttp: %v", err)
	}
	var said struct {
		OHTTP struct{ URL string }
	}
	if err := json.Unmarshal(out, &said); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var keys ohttp.KeyConfigs
	if err := keys.UnmarshalBinary(raw); err != nil || len(keys) != len(suites) {
		t.Fatalf("reading the keys: %d, %v", len(keys), err)
	}
	for i, suite := range suites {
		if keys[i].KemID != suite.kem {
			t.Fatalf("key %d: got KEM %04x", i+1, keys[i].KemID)
		}
		for form, client := range theirClients(t, keys[i], said.OHTTP.URL) {
			t.Run(suite.name+"/"+form, func(t *testing.T) {
				for _, size := range sizes {
					body := strings.Repeat("x", size)
					got := ask(t, client, http.MethodGet, "https://"+info.ServerName+"/path", strings.NewReader(body), http.StatusOK)
					if want := "GET /path " + body; string(got) != want {
						t.Errorf("got %d bytes %.60q, want %d", len(got), got, len(want))
					}
				}
				ask(t, client, http.MethodPost, "https://"+info.ServerName+"/path", strings.NewReader("x"), http.StatusForbidden)
			})
		}
	}
	keys[1].KeyID ^= 0x80
	for form, client := range theirClients(t, keys[1], said.OHTTP.URL) {
		_, err := client.Get("https://" + info.ServerName)
		var refused ohttp.ResponseStatusError
		if !errors.As(err, &refused) || refused.StatusCode != http.StatusBadRequest {
			t.Errorf("%s, an unknown key: got %v, want status 400", form, err)
		}
	}
}

// devInfo is what the test needs of dev.json.
type devInfo struct {
	Genesis, Authority, Gateway, Task string
	ServerName                        string `json:"server_name"`
}

// startDev builds the product and runs `cohort dev` until the test ends.
func startDev(t *testing.T) (bin string, info devInfo) {
	t.Helper()
	bin, dir := t.TempDir(), t.TempDir()
	for dir, program := range map[string]string{"../..": "./cmd/cohort", ".": "./echo"} {
		build := exec.Command("go", "build", "-trimpath", "-o", bin+"/", program)
		build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", program, err, out)
		}
	}
	var said bytes.Buffer
	dev := exec.Command(filepath.Join(bin, "cohort"), "dev", "--dir", dir, "--base-port", "0", "--", filepath.Join(bin, "echo"))
	dev.Stdout, dev.Stderr = &said, &said
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = dev.Process.Signal(syscall.SIGTERM)
		if err := dev.Wait(); err != nil || t.Failed() {
			t.Logf("cohort dev ended with %v:\n%s", err, said.String())
		}
	})
	for range 1200 {
		if b, err := os.ReadFile(filepath.Join(dir, "dev.json")); err == nil && json.Unmarshal(b, &info) == nil {
			return bin, info
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("cohort dev is not up after a minute")
	return "", devInfo{}
}

// theirClients are foreign clients by the form of their messages.
func theirClients(t *testing.T, key ohttp.KeyConfig, url string) map[string]*http.Client {
	t.Helper()
	clients := map[string]*http.Client{}
	for form, options := range map[string][]bhttp.Option{"as it comes": nil, "in chunks": {bhttp.FixedLengthRequestChunks()}} {
		encoder, err := bhttp.NewRequestEncoder(options...)
		if err != nil {
			t.Fatal(err)
		}
		transport, err := ohttp.NewTransport(key, url, ohttp.WithRequestEncoder(encoder))
		if err != nil {
			t.Fatal(err)
		}
		clients[form] = &http.Client{Transport: transport}
	}
	return clients
}

// ask sends one request and demands a status.
func ask(t *testing.T, client *http.Client, method, url string, body io.Reader, status int) []byte {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status {
		t.Errorf("%s: got %d %.200q, %v, want %d", method, answer.StatusCode, b, err, status)
	}
	return b
}

// TestTheirGateway sends requests of our client to a foreign gateway.
func TestTheirGateway(t *testing.T) {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		fmt.Fprintf(w, "%s %s %s ", r.Method, r.Host, r.URL.Path)
		w.Write(b)
	})
	for _, suite := range suites {
		public, private, err := suite.kem.Scheme().GenerateKeyPair()
		if err != nil {
			t.Fatal(err)
		}
		pair := ohttp.KeyPair{SecretKey: private, KeyConfig: ohttp.KeyConfig{
			KeyID: 7, KemID: suite.kem, PublicKey: public,
			SymmetricAlgorithms: []ohttp.SymmetricAlgorithm{{KDFID: hpke.KDF_HKDF_SHA256, AEADID: suite.aead}},
		}}
		// The draft demands that chunks of 16 KiB are taken; without the option
		// this gateway takes 4 KiB.
		decoder, err := bhttp.NewRequestDecoder(bhttp.MaxRequestChunkLen(16 << 10))
		if err != nil {
			t.Fatal(err)
		}
		gateway, err := ohttp.NewGateway(pair, ohttp.WithRequestDecoder(decoder))
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(ohttp.Middleware(gateway, app))
		defer server.Close()
		raw, err := ohttp.KeyConfigs{pair.KeyConfig}.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		keys, err := unitauth.UnverifiedOHTTPKeys(raw)
		if err != nil {
			t.Fatal(err)
		}
		to, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, whole := range []bool{true, false} {
			ours, err := channelhttp.NewOHTTPTransport(channelhttp.OHTTPConfig{URL: to, Inner: http.DefaultTransport, Keys: keys, Whole: whole})
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range sizes {
				t.Run(fmt.Sprintf("%s/whole %v/%d bytes", suite.name, whole, size), func(t *testing.T) {
					body := bytes.Repeat([]byte{'x'}, size)
					got := ask(t, &http.Client{Transport: ours}, http.MethodPut, "https://ohttp.invalid/path", bytes.NewReader(body), http.StatusOK)
					if want := "PUT ohttp.invalid /path " + string(body); string(got) != want {
						t.Errorf("got %d bytes %.60q, want %d", len(got), got, len(want))
					}
				})
			}
		}
	}
}
