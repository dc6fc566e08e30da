package systest

import (
	"net"
	"os/exec"
	"strings"
	"testing"
)

// run runs a command to its end and returns its output.
func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestOtherTools: curl, openssl and nmap, which know nothing of Cohort, examine a cluster.
// One root verifies every unit; there is one leaf in key mode shared and one for each unit
// in key mode unit, only TLS 1.3, and no session ticket.
func TestOtherTools(t *testing.T) {
	for mode, want := range map[string]int{"shared": 1, "unit": 3} {
		t.Run(mode, func(t *testing.T) {
			info := StartDev(t, "--key-mode", mode).WaitInfo()
			leaves := map[string]bool{}
			for _, address := range info.Addresses() {
				body := run(t, "", "curl", "-sS", "--fail", "--cacert", info.Root, "--connect-to", "::"+address, info.URL()+"/")
				if !strings.Contains(body, `"service":"scoring"`) {
					t.Errorf("curl: got %q", body)
				}
				leaves[leaf(t, info, address)] = true
				scan(t, address)
			}
			if len(leaves) != want {
				t.Errorf("openssl: got %d different leaves, want %d", len(leaves), want)
			}
		})
	}
}

// leaf returns the certificate that openssl receives, after a whole request, so that a
// session ticket would show.
func leaf(t *testing.T, info DevInfo, address string) string {
	t.Helper()
	out := run(t, "GET / HTTP/1.1\r\nHost: "+info.ServerName+"\r\nConnection: close\r\n\r\n", "openssl", "s_client",
		"-connect", address, "-servername", info.ServerName, "-verify_hostname", info.ServerName,
		"-CAfile", info.Root, "-verify_return_error", "-ign_eof")
	if !strings.Contains(out, "Verification: OK") || !strings.Contains(out, "New, TLSv1.3") {
		t.Errorf("openssl: no verified TLS 1.3 connection:\n%s", out)
	}
	if strings.Contains(out, "New Session Ticket") {
		t.Error("openssl: got a session ticket, want none")
	}
	_, rest, _ := strings.Cut(out, "-----BEGIN CERTIFICATE-----")
	pem, _, ok := strings.Cut(rest, "-----END CERTIFICATE-----")
	if !ok {
		t.Error("openssl: no certificate")
	}
	return pem
}

// scan requires TLS 1.3 and nothing older.
func scan(t *testing.T, address string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "", "nmap", "-Pn", "-p", port, "--script", "ssl-enum-ciphers", host)
	if !strings.Contains(out, "TLSv1.3:") {
		t.Errorf("nmap: no TLS 1.3:\n%s", out)
	}
	for _, old := range []string{"SSLv3:", "TLSv1.0:", "TLSv1.1:", "TLSv1.2:"} {
		if strings.Contains(out, old) {
			t.Errorf("nmap: got %s, want none older than TLS 1.3", old)
		}
	}
}
