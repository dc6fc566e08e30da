package frame

import (
	"os"
	"path/filepath"
	"testing"
)

func FuzzReadCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "c.pem")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Skip(err)
		}
		if list, err := ReadCertificates(path); err == nil && len(list) == 0 {
			t.Error("a file without a certificate was accepted")
		}
	})
}
