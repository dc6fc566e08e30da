package manager

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

// selfSignedLifetime is the lifetime of a self-signed certificate.
const selfSignedLifetime = 10 * 365 * 24 * time.Hour

// SelfSignedCA returns the path of the self-signed certificate that a manager uses if the
// operator provides none. Units take this file as --manager-ca.
func SelfSignedCA(dataDir string) string { return filepath.Join(dataDir, caFile) }

// loadSelfSigned reads the self-signed certificate, or creates it.
func loadSelfSigned(c Config) (func() (*tls.Certificate, error), error) {
	private := filepath.Join(c.DataDir, privateFile)
	pair, err := tls.LoadX509KeyPair(SelfSignedCA(c.DataDir), private)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createSelfSigned(c, private); err != nil {
			return nil, fmt.Errorf("making a certificate: %w", err)
		}
		pair, err = tls.LoadX509KeyPair(SelfSignedCA(c.DataDir), private)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the self-signed certificate: %w", err)
	}
	return func() (*tls.Certificate, error) { return &pair, nil }, nil
}

// createSelfSigned writes a private key and a certificate for loopback and for the bus address.
func createSelfSigned(c Config, private string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cohort manager"},
		NotBefore: c.Clock().Add(-time.Hour), NotAfter: c.Clock().Add(selfSignedLifetime),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if host, _, err := net.SplitHostPort(c.BusAddress); err == nil && net.ParseIP(host) == nil && host != "" {
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
	if err := os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(SelfSignedCA(c.DataDir), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}
