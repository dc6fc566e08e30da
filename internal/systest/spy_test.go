package systest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// spy is a genuine unit that gives the test everything it receives: ring keys, the shared
// key, and the traffic of the bus.
type spy struct {
	t   *testing.T
	a   *apart
	key *ecdsa.PrivateKey

	mu       sync.Mutex
	pushed   []bus.Item // guarded by mu
	messages []byte     // guarded by mu: the same as it travelled
}

func newSpy(t *testing.T, a *apart) *spy { return &spy{t: t, a: a, key: newKey(t)} }

// report enrols, and returns the certificate report.
func (s *spy) report() api.Report {
	s.t.Helper()
	authority := testworld.Must(api.NewAuthority(s.a.place.URL, insecure()))
	defer authority.Close()
	challenge, err := authority.Challenge(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	key := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	request := attested(s.t, api.CertificateRequest{
		Task: "scoring", Nonce: challenge.Nonce, HPKEKey: key.PublicKey().Bytes(),
		SigningKey: testworld.Must(x509.MarshalPKIXPublicKey(s.key.Public())), Root: s.a.place.Root,
	}, s.a.place.Device)
	sealed, err := authority.Certify(s.t.Context(), request)
	if err != nil {
		s.t.Fatal(err)
	}
	recipient := testworld.Must(hpke.NewRecipient(sealed.Encapsulated, key, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request, sealed.GroupRoot)))
	var signed api.SignedReport
	var report api.Report
	if err := json.Unmarshal(testworld.Must(recipient.Open(nil, sealed.Ciphertext)), &signed); err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(signed.Report, &report); err != nil {
		s.t.Fatal(err)
	}
	return report
}

// listen starts recording the bus.
func (s *spy) listen(report api.Report) *bus.Conn {
	s.t.Helper()
	conn := testworld.Must(bus.Connect(bus.Config{
		URL: "tls://" + s.a.gateway.Bus,
		TLS: s.a.busTLS(tls.Certificate{Certificate: [][]byte{report.Unit, report.Cross}, PrivateKey: s.key}),
	}))
	s.t.Cleanup(conn.Close)
	conn.Subscribe(func(i bus.Item) {
		s.mu.Lock()
		defer s.mu.Unlock()
		i.Bytes = bytes.Clone(i.Bytes)
		s.pushed = append(s.pushed, i)
		s.messages = i.Append(s.messages)
	})
	testworld.Eventually(s.t, "the spy is on the bus", conn.Connected)
	return conn
}

// items returns the items pushed so far, and the raw messages that carried them.
func (s *spy) items() ([]bus.Item, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pushed, s.messages
}

// ringKeys returns the keys of a report by name.
func ringKeys(r api.Rings) map[string]*api.RingKey {
	named := map[string]*api.RingKey{}
	for kind, keys := range map[string]api.RingKeys{"strict": r.Strict, "follow": r.Follow} {
		for name, key := range map[string]*api.RingKey{"previous": keys.Previous, "current": keys.Current, "next": keys.Next} {
			if key != nil {
				named[kind+" "+name] = key
			}
		}
	}
	return named
}

// sealKeys returns the AES-256 key and the nonce key with which a unit seals under a ring
// key.
func sealKeys(key *api.RingKey, unit wire.UnitID) (aesKey, nonceKey []byte) {
	ring := testworld.Must(identity.OpenRingKey(key.Key, key.End))
	id := ring.ID()
	b := testworld.Must(ring.Derive(64, wire.LabelSealKey, id[:], unit[:]))
	return b[:32], b[32:]
}

// openSealed decrypts a sealed session with its ring key, and returns the session's secret.
func openSealed(item bus.Item, keys map[string]*api.RingKey) (secret []byte, ok bool) {
	var whole [3][]byte // associated data, nonce, ciphertext
	var bound [6][]byte // suite, identity, ring, session, expiry, sealing unit
	if wire.UnframeInto(whole[:], wire.LabelSealedSession, item.Bytes) != nil || wire.UnframeInto(bound[:], wire.LabelSealed, whole[0]) != nil {
		return nil, false
	}
	for _, key := range keys {
		aesKey, _ := sealKeys(key, wire.UnitID(bound[5]))
		plain, err := testworld.Must(cipher.NewGCM(testworld.Must(aes.NewCipher(aesKey)))).Open(nil, whole[1], whole[2], whole[0])
		if err != nil {
			continue
		}
		var body [4][]byte // secret, pin, policy head, opening unit
		if wire.UnframeInto(body[:], wire.LabelSealedBody, plain) == nil {
			return body[0], true
		}
	}
	return nil, false
}

// seal publishes a session that a unit known only to the spy sealed under the follow key of
// a report. It returns that unit's id and the session's secret.
func (s *spy) seal(conn *bus.Conn, report api.Report) (sealer wire.UnitID, secret []byte) {
	s.t.Helper()
	var session wire.SessionID
	secret = make([]byte, 32)
	for _, b := range [][]byte{sealer[:], session[:], secret} {
		rand.Read(b)
	}
	key := report.Rings.Follow.Current
	ring := testworld.Must(identity.OpenRingKey(key.Key, key.End)).ID()
	genesis := s.a.place.Genesis
	pin := wire.Frame(wire.LabelPin, []byte("task"), []byte("scoring"), genesis[:])
	expiry := uint64(key.End.Unix())
	ad := wire.Frame(wire.LabelSealed, []byte{1}, report.Identity[:], ring[:], session[:], wire.Uint64(expiry), sealer[:])
	plain := wire.Frame(wire.LabelSealedBody, secret, pin, report.Head[:], sealer[:])
	aesKey, nonceKey := sealKeys(key, sealer)
	mac := hmac.New(sha256.New, nonceKey)
	mac.Write(ad)
	mac.Write(plain)
	nonce := mac.Sum(nil)[:12]
	ciphertext := testworld.Must(cipher.NewGCM(testworld.Must(aes.NewCipher(aesKey)))).Seal(nil, nonce, plain, ad)
	sealed := wire.Frame(wire.LabelSealedSession, ad, nonce, ciphertext)
	if err := conn.Publish(bus.Item{Kind: bus.Sealed, Session: session, Expiry: expiry, Bytes: sealed}); err != nil {
		s.t.Fatal(err)
	}
	return sealer, secret
}
