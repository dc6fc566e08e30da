package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// issues is the number of certificates that one round issues.
const issues = 48

// floors are operations that no authority can omit.
type floors struct {
	p256, p384 *ecdsa.PrivateKey
	ca         *x509.Certificate
	csr        []byte
	hpke       hpke.PublicKey
}

func newFloors() *floors {
	f := &floors{p256: testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), p384: testworld.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))}
	f.hpke = testworld.Must(hpke.MLKEM768X25519().GenerateKey()).PublicKey()
	f.ca = certificate("authority")
	f.ca.IsCA, f.ca.BasicConstraintsValid, f.ca.KeyUsage = true, true, x509.KeyUsageCertSign
	f.ca = testworld.Must(x509.ParseCertificate(testworld.Must(x509.CreateCertificate(rand.Reader, f.ca, f.ca, &f.p256.PublicKey, f.p256))))
	f.csr = newCSR()
	return f
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name + ".clinic.example"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
}

// evidence returns the least work of a verifier for evidence of a platform whose keys it
// knows: one P-384 signature for SNP, two P-256 signatures for TDX.
func (f *floors) evidence(p attest.Platform) func() {
	key, digest, times := f.p256, sha256.Sum256(make([]byte, 632)), 2
	sum := digest[:]
	if p == attest.SNP {
		long := sha512.Sum384(make([]byte, 672))
		key, sum, times = f.p384, long[:], 1
	}
	signature := testworld.Must(ecdsa.SignASN1(rand.Reader, key, sum))
	return func() {
		for range times {
			if !ecdsa.VerifyASN1(&key.PublicKey, sum, signature) {
				panic("the signature does not verify")
			}
		}
	}
}

// fromCSR parses and checks a CSR and issues a certificate.
func (f *floors) fromCSR() {
	r := testworld.Must(x509.ParseCertificateRequest(f.csr))
	if err := r.CheckSignature(); err != nil {
		panic(err)
	}
	testworld.Must(x509.CreateCertificate(rand.Reader, certificate("own"), f.ca, r.PublicKey, f.p256))
}

// shared issues a unit certificate, signs the report and seals it.
func (f *floors) shared() {
	testworld.Must(x509.CreateCertificate(rand.Reader, certificate("unit"), f.ca, &f.p256.PublicKey, f.p256))
	digest := sha256.Sum256(make([]byte, 6<<10))
	testworld.Must(ecdsa.SignASN1(rand.Reader, f.p256, digest[:]))
	testworld.Must(hpke.Seal(f.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), nil, make([]byte, 8<<10)))
}

// BenchmarkIssue is G4 (task own) and G5 (task scoring): the authority's CPU time for one
// unit over kept-alive TLS, challenge and record included, against the operations that it
// cannot omit.
func BenchmarkIssue(b *testing.B) {
	p, f := start(b), newFloors()
	for _, of := range []attest.Platform{attest.SNP, attest.TDX} {
		evidence := f.evidence(of)
		for _, row := range []struct {
			name, task string
			issue      func()
		}{{"own-key", "own", f.fromCSR}, {"shared-key", "scoring", f.shared}} {
			b.Run(string(of)+"/"+row.name, func(b *testing.B) {
				Compare(b,
					Contender{"floor", func() time.Duration {
						return alone(func() { all(issues, func() { evidence(); row.issue() }) }) / issues
					}},
					Contender{"authority", func() time.Duration { return p.issue(b.Context(), of, row.task) }})
			})
		}
	}
}

// issue returns the authority's CPU time for one of several units.
func (p *peer) issue(ctx context.Context, of attest.Platform, task string) time.Duration {
	var nonces [][]byte
	cost := p.serving(func() { nonces = p.estate.challenges(ctx, issues) })
	applicants := make(chan applicant, issues)
	for _, nonce := range nonces {
		applicants <- p.estate.applicant(ctx, of, task, nonce)
	}
	cost += p.serving(func() {
		all(issues, func() { testworld.Must(p.estate.authority.Certify(ctx, (<-applicants).CertificateRequest)) })
	})
	return cost / issues
}

// records is the number of records that one round writes.
const records = 64

// BenchmarkRecord is G6: the wall time of a durable issuance record, with 1 and with 16 in
// flight, against a bare append and fsync of as many bytes.
func BenchmarkRecord(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkRecord(b, "sqlite:"+filepath.Join(b.TempDir(), "a.db")) })
	b.Run("postgres", func(b *testing.B) { benchmarkRecord(b, testdb.NewServer(b).Database(b)) })
}

func benchmarkRecord(b *testing.B, address string) {
	file := testworld.Must(os.Create(filepath.Join(b.TempDir(), "bare")))
	defer file.Close()
	db := testworld.Must(store.Create(b.Context(), address))
	defer db.Close()
	record := recording(b, db)
	Compare(b,
		Contender{"fsync", elapsed(1, func() {
			testworld.Must(file.Write(make([]byte, contentSize)))
			if err := file.Sync(); err != nil {
				panic(err)
			}
		})},
		Contender{"1-in-flight", elapsed(1, record)},
		Contender{"16-in-flight", elapsed(inFlight, record)})
	cpu := alone(func() { elapsed(inFlight, record)() }) / records
	b.ReportMetric(float64(cpu)/float64(time.Microsecond), "cpu-µs/record")
}

// contentSize is the approximate size of a log entry, in bytes.
const contentSize = 600

// recording returns a function that writes a new record at each call.
func recording(b *testing.B, db *store.Store) func() {
	b.Helper()
	head := wire.Sum([]byte("head"))
	step := store.Row{Key: head[:], Content: []byte("step"), MAC: []byte("tag")}
	if err := db.Append(b.Context(), wire.Digest{}, step); err != nil {
		b.Fatal(err)
	}
	var number atomic.Int64
	content := make([]byte, contentSize)
	return func() {
		digest := wire.Sum(wire.Uint64(uint64(number.Add(1))))
		row := store.Row{Key: digest[:], Content: content, MAC: digest[:]}
		if err := db.Record(context.Background(), store.Issuance{
			Entry: store.Entry{Row: row, Task: "scoring", Unit: digest.String()}, Serial: digest.String(), Certificate: digest, Head: head,
		}); err != nil {
			panic(err)
		}
	}
}

// elapsed returns a cost in wall time: the time of one of many calls, with some in flight.
func elapsed(flying int, f func()) func() time.Duration {
	return func() time.Duration {
		start := time.Now()
		var group sync.WaitGroup
		for range flying {
			group.Go(func() {
				for range records / flying {
					f()
				}
			})
		}
		group.Wait()
		return time.Since(start) / records
	}
}
