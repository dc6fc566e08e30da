package nitro_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/internal/wire"
)

// distribution returns a critical issuing distribution point (RFC 5280, section 5.2.5) with
// further fields after the URL.
func distribution(t *testing.T, place string, more ...byte) pkix.Extension {
	t.Helper()
	name := append([]byte{0x86, byte(len(place))}, place...)
	wrap := func(tag byte, content []byte) []byte {
		if len(content) < 128 {
			return append([]byte{tag, byte(len(content))}, content...)
		}
		return append([]byte{tag, 0x81, byte(len(content))}, content...)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: wrap(0x30, append(wrap(0xa0, wrap(0xa0, name)), more...))}
}

// TestLists appraises an enclave below regional and zonal authorities, whose certificates name
// revocation lists, as AWS's do.
func TestLists(t *testing.T) {
	revoke := func(name string) func(l *x509.RevocationList, issuer string) {
		return func(l *x509.RevocationList, _ string) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: attesttest.NitroSerial(name), RevocationTime: now}}
		}
	}
	only := func(issuer string, edit func(l *x509.RevocationList)) func(l *x509.RevocationList, of string) {
		return func(l *x509.RevocationList, of string) {
			if of == issuer {
				edit(l)
			}
		}
	}
	place := func(e pkix.Extension) func(l *x509.RevocationList) {
		return func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{e} }
	}
	region := attesttest.NitroList("region")
	tests := []struct {
		name   string
		edit   func(l *x509.RevocationList, issuer string)
		change func(e attest.Endorsements)
		rule   attest.CRLRule
		want   error
	}{
		{"both", nil, nil, attest.CRLRequired, nil},
		{"none, not required", nil, func(e attest.Endorsements) { clear(e) }, "", nil},
		{"none, required", nil, func(e attest.Endorsements) { clear(e) }, attest.CRLRequired, wire.CRLMissing},
		{"no list of the root, required", nil, func(e attest.Endorsements) { delete(e, "root_crl") }, attest.CRLRequired, wire.CRLMissing},
		{"no list of the region, required", nil, func(e attest.Endorsements) { delete(e, "region_crl") }, attest.CRLRequired, wire.CRLMissing},
		{"region revoked", revoke("region"), nil, "", wire.Revoked},
		{"zone revoked", revoke("zone"), nil, "", wire.Revoked},
		{"an instance by the region", revoke("instance"), nil, attest.CRLRequired, nil}, // a serial number of a different issuer
		{"swapped", nil, func(e attest.Endorsements) { e["root_crl"], e["region_crl"] = e["region_crl"], e["root_crl"] }, "", wire.BadSignature},
		{"no list", nil, func(e attest.Endorsements) { e["root_crl"] = []byte("x") }, "", wire.Malformed},
		{"another vendor's", nil, func(e attest.Endorsements) { e["root_crl"] = attesttest.NewNitroVendor(now).Endorsements()["root_crl"] }, "", wire.BadSignature},
		{"of the issuer's key under another name", func(l *x509.RevocationList, _ string) { l.Issuer = pkix.Name{CommonName: "another"} }, nil, "", wire.BadSignature},
		{"by another digest", func(l *x509.RevocationList, _ string) { l.SignatureAlgorithm = x509.ECDSAWithSHA512 }, nil, "", nil},
		{"past its end", func(l *x509.RevocationList, _ string) { l.NextUpdate = now.Add(59 * time.Second) }, nil, "", wire.Expired},
		{"last second", func(l *x509.RevocationList, _ string) { l.NextUpdate = now.Add(time.Minute) }, nil, "", nil},
		{"issued two minutes later", func(l *x509.RevocationList, _ string) { l.ThisUpdate = now.Add(3 * time.Minute) }, nil, "", nil},
		{"and a second", func(l *x509.RevocationList, _ string) { l.ThisUpdate = now.Add(3*time.Minute + time.Second) }, nil, "", wire.Expired},
		{"critical extension", only("region", place(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})), nil, "", wire.Malformed},
		{"its place", only("aws.nitro-enclaves", place(distribution(t, region))), nil, attest.CRLRequired, nil},
		{"another place", only("aws.nitro-enclaves", place(distribution(t, region+"x"))), nil, "", wire.Malformed},
		{"some certificates only", only("aws.nitro-enclaves", place(distribution(t, region, 0x81, 1, 0xff))), nil, "", wire.Malformed},
		{"another's certificates", only("aws.nitro-enclaves", place(distribution(t, region, 0x84, 1, 0xff))), nil, "", wire.Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			s.vendor.Regions, s.vendor.ListEdit = true, tt.edit
			s.start()
			endorsed := s.vendor.Endorsements()
			if tt.change != nil {
				tt.change(endorsed)
			}
			evidence, err := s.device.Attest(t.Context(), use)
			if err != nil {
				t.Fatal(err)
			}
			rules := s.rules
			rules.CRL = tt.rule
			claims, err := nitro.Platform().Appraiser().Appraise(evidence.Raw, endorsed, rules, s.at)
			if !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
			if listed := rules.CRL == attest.CRLRequired; err == nil && listed && claims.Issued.IsZero() {
				t.Error("does not say when the lists were issued")
			}
			if _, err := nitro.Platform().Appraiser().(attest.Screener).Screen(evidence.Raw, nil, rules, s.at); err != nil {
				t.Errorf("before any list: %v", err)
			}
		})
	}
}

// TestScreenRefuses: evidence that fails a check without lists is refused before lists are
// fetched.
func TestScreenRefuses(t *testing.T) {
	s := newScene()
	evidence, err := s.device.Attest(t.Context(), use)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		change func(raw []byte, r *attest.Rules) []byte
		want   attest.Reason
	}{
		"form":      {func(raw []byte, _ *attest.Rules) []byte { return raw[1:] }, wire.Malformed},
		"root":      {func(raw []byte, r *attest.Rules) []byte { r.Roots = nil; return raw }, wire.UnknownRoot},
		"signature": {func(raw []byte, _ *attest.Rules) []byte { raw[len(raw)-1] ^= 1; return raw }, wire.BadSignature},
		"age":       {func(raw []byte, r *attest.Rules) []byte { r.Nitro.MaxAge = 0; return raw }, wire.Expired},
	} {
		rules := s.rules
		raw := row.change(append([]byte(nil), evidence.Raw...), &rules)
		if _, err := nitro.Platform().Appraiser().(attest.Screener).Screen(raw, nil, rules, s.at); !errors.Is(err, row.want) {
			t.Errorf("%s: err = %v, want reason %q", name, err, row.want)
		}
	}
}

var _ = nitro.Platform().Appraiser().(attest.Screener) // such evidence causes no request to AWS
