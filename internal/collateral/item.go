package collateral

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// item is one document, and where it is asked for.
type item struct {
	attest.Document
	url string // empty when no service is asked
}

// items lists the documents that belong to evidence, as far as it can be read.
// Nothing in it is verified, so a document may be of another chip or of none.
func (c *Collateral) items(e attest.Evidence) []item {
	if c.config.Documents == nil {
		return nil
	}
	var items []item
	for _, d := range c.config.Documents(e) {
		it := item{Document: d}
		switch base := c.config.Sources[d.Source]; {
		case base == "" && d.URL != "":
			continue // evidence alone states where it is, and no source is asked
		case base == "":
		case base == d.Source && d.URL != "":
			it.url = d.URL
		default:
			it.url = strings.TrimSuffix(base, "/") + d.Path
		}
		items = append(items, it)
	}
	return items
}

// maxChain bounds the certificates of one text.
const maxChain = 8

// expiry reads when a document ends: the first of its parts.
func (it item) expiry(d Document) (time.Time, error) {
	switch {
	case it.Kind == attest.RevocationListDocument:
		crl, err := x509.ParseRevocationList(d.Content)
		if err != nil {
			return time.Time{}, fmt.Errorf("reading the list: %w", err)
		}
		return crl.NextUpdate, nil
	case it.Kind == attest.StatementDocument:
		return it.statementExpiry(d)
	case strings.HasSuffix(it.Name, ".pem"):
		return chainExpiry(d.Content)
	}
	cert, err := x509.ParseCertificate(d.Content)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the certificate: %w", err)
	}
	return cert.NotAfter, nil
}

// statementExpiry is when a statement ends: itself, or the certificates of its signer.
func (it item) statementExpiry(d Document) (time.Time, error) {
	end, err := it.Expires(d.Content)
	if err != nil || it.Chain == "" {
		return end, err
	}
	signer, err := chainExpiry(d.Chain)
	if signer.Before(end) {
		end = signer
	}
	return end, err
}

func chainExpiry(text []byte) (end time.Time, err error) {
	ders, err := wire.ParseCertificates("collateral: chain", text, maxChain)
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return end, fmt.Errorf("reading the chain: %w", err)
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	if err == nil && end.IsZero() {
		err = errors.New("reading the chain: no certificate")
	}
	return end, err
}
