// Package selfsigned makes the certificate of a manager's bus when the operator provides none. Units
// take its file as the manager's CA.
//
// It protects availability only: a unit trusts nothing that a manager sends. It trusts the
// directory with the private key.
package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files of the self-signed certificate.
const (
	caFile      = "manager.pem" // the certificate
	privateFile = "manager-key.pem"
)

// lifetime is the lifetime of a certificate.
const lifetime = 10 * 365 * 24 * time.Hour

// CAFile returns the path of the certificate in a manager's data directory.
func CAFile(dataDir string) string { return filepath.Join(dataDir, caFile) }

// LoadOrCreate reads the certificate in a data directory, or creates it, for the host:port of the bus.
func LoadOrCreate(dataDir, bus string, now time.Time) (func() (*tls.Certificate, error), error) {
	private := filepath.Join(dataDir, privateFile)
	pair, err := tls.LoadX509KeyPair(CAFile(dataDir), private)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createPair(dataDir, bus, now); err != nil {
			return nil, fmt.Errorf("making a certificate: %w", err)
		}
		pair, err = tls.LoadX509KeyPair(CAFile(dataDir), private)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the self-signed certificate: %w", err)
	}
	return func() (*tls.Certificate, error) { return &pair, nil }, nil
}

// createPair writes a private key and a certificate for loopback and for the bus address.
func createPair(dataDir, bus string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cohort manager"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if host, _, err := net.SplitHostPort(bus); err == nil && net.ParseIP(host) == nil && host != "" {
		template.DNSNames = append(template.DNSNames, host)
	} else if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// Write the certificate last: if it exists, so does the key.
	if err := os.WriteFile(filepath.Join(dataDir, privateFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(CAFile(dataDir), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}
