package channel

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/iotest"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

var noEvidence attest.Evidence

var update = flag.Bool("update", false, "write testdata/vectors anew")

// vector is one file of testdata/vectors: inputs and expected outputs, byte strings in
// hexadecimal. A second implementation can derive every value of "out" from "in", except
// signatures and KEM ciphertexts, which it verifies and opens.
type vector struct {
	Description string            `json:"description"`
	In          map[string]string `json:"in"`
	Out         map[string]string `json:"out"`
}

// bytesOf returns a value of the vector by its name.
func (v vector) bytesOf(name string) []byte {
	return testworld.Must(hex.DecodeString(v.In[name] + v.Out[name]))
}

func in(pairs ...any) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = hex.EncodeToString(pairs[i+1].([]byte))
	}
	return m
}

// openVector returns a session, from the client's key to the sealed session.
func openVector(t *testing.T, wants SessionOptions, evidence attest.Evidence) (vector, *Host, *Session) {
	t.Helper()
	fixed := func(name string) []byte { d := wire.Sum([]byte(name)); return d[:] }
	key := testworld.Must(ecdsa.ParseRawPrivateKey(elliptic.P256(), fixed("unit")))
	h := testworld.Must(NewHost(key, Limits{}))
	ringKey := func(name string) *identity.RingKey {
		return testworld.Must(identity.OpenRingKey(fixed(name), noon.Add(2*time.Hour)))
	}
	st := &credentials{UnitCredentials: UnitCredentials{Task: "scoring", Identity: wire.Sum([]byte("identity")), Genesis: wire.Sum([]byte("genesis")),
		Root: wire.Sum([]byte("root")), Head: wire.Sum([]byte("head")), NotAfter: noon.Add(time.Hour)},
		chain: wire.Frame(wire.LabelChain, []byte("unit certificate"), []byte("cross-certificate")), rings: map[identity.RingID]*ring{}}
	add := func(k *identity.RingKey, pin unitauth.Pin) *ring {
		r := ringOfKey(nil, k, st.Identity, pin.Encode())
		st.rings[k.ID()] = r
		return r
	}
	st.strict = add(ringKey("strict"), unitauth.Pin{Genesis: st.Genesis, ID: st.Identity})
	st.follow = add(ringKey("follow"), unitauth.Pin{Genesis: st.Genesis, Task: st.Task})
	h.credentials = st
	h.known.consider(st)

	cryptotest.SetGlobalRandom(t, 1)
	private := testworld.Must(hpke.MLKEM768X25519().DeriveKeyPair(fixed("client")))
	pin := unitauth.Pin{Genesis: st.Genesis, Task: st.Task}
	o := &ClientHandshake{key: private, pin: pin, nonce: fixed("nonce"), wants: wants}
	if wants&wantHead != 0 {
		o.least = st.Head[:]
	}
	o.request = wire.Frame(wire.LabelSessionOpen, []byte{envelope.Suite}, o.kemKey(), o.nonce, pin.Encode(), []byte{byte(wants)}, o.least)
	cookie := testworld.Must(h.Cookie(o.request, noon))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.request, Cookie: cookie, Number: 7}, noon))
	response, sealed, err := a.Finish(evidence, noon)
	if err != nil {
		t.Fatal(err)
	}
	shared := testworld.Must(decapsulate(private, a.enc))
	sharedHex := bytes.Clone(shared)
	secret := testworld.Must(sessionSecret(shared, a.transcript))
	if secret != a.session.secret {
		t.Fatal("both sides have other secrets")
	}
	data := testworld.Must(evidenceData(secret[:], a.transcript))
	s := &Session{id: a.session.id, expires: time.Unix(int64(a.session.expiry), 0), ticket: sealed, secret: secret}
	ringID := st.follow.key.ID()
	v := vector{
		Description: "a session opened by task name; certificates and evidence, where it is wanted, are placeholders; the client's key is DeriveKeyPair(client_seed)",
		In: in("client_seed", fixed("client"), "unit_key", fixed("unit"), "follow_ring_key", fixed("follow"),
			"identity", st.Identity[:], "genesis", st.Genesis[:], "authority_root", st.Root[:], "policy_head", st.Head[:],
			"open_request", o.request, "response", response, "ek_certificate", fixed("ek"), "attestation_key", fixed("ak")),
		Out: in("pin", pin.Encode(), "kem_secret", sharedHex, "unit_id", h.id[:], "ring_id", ringID[:], "session_id", s.id[:],
			"transcript", a.transcript[:], "session_secret", secret[:], "evidence_report_data", data[:], "sealed_session", sealed,
			"cookie_at_noon", cookie, "unit_time", unitauth.TimeBytes(noon), "introduction", unitauth.Introduction{Unit: h.id, TPMKeys: attest.TPMKeys{Device: fixed("ek"), Key: fixed("ak")}}.Encode()),
	}
	return v, h, s
}

// requestVector returns a small request with a receipt, and its response.
func requestVector(t *testing.T, h *Host, s *Session) vector {
	t.Helper()
	x := testworld.Must(s.newRequest(h.ID(), noon.Add(30*time.Second), wire.FlagReceipt))
	body := []byte("what is it?")
	request := testworld.Must(x.Whole(bhttp.Head{Method: "POST", Scheme: "https", Authority: "scoring.clinic.example", Path: "/score", Fields: http.Header{"Accept": {"text/plain"}}, Length: int64(len(body))}, bytes.NewReader(body)))
	in1 := testworld.Must(h.findSession([wire.HeaderSize]byte(request), noon))
	if err := in1.openFirst(bytes.NewReader(request[wire.HeaderSize:]), atNoon); err != nil {
		t.Fatal(err)
	}
	prefix, seal, err := in1.responseWriter()
	if err != nil {
		t.Fatal(err)
	}
	plain := append(make([]byte, chunk.LengthSize), in1.responsePrefix(KindResponse)...)
	plain = testworld.Must(bhttp.AppendResponse(plain, bhttp.Head{Status: 200, Fields: http.Header{"Content-Type": {"text/plain"}}, Length: 2}))
	plain = chunk.PadToBucket(append(plain, "it"...), chunk.LengthSize)
	signed, responded := wire.Sum(in1.first), wire.Sum(plain[chunk.LengthSize:])
	receipt := testworld.Must(unitauth.SignReceipt(h.key, h.credentials.chain, unitauth.ReceiptClaims{
		Session: in1.header.Session, Number: in1.header.Number, Request: signed, Response: responded, Unit: h.id, At: noon, Head: h.credentials.Head,
	}))
	response := append(prefix[:], seal.SealChunk(bytes.Clone(plain), chunk.More)...)
	response = append(response, seal.SealChunk(append(make([]byte, chunk.LengthSize), receipt...), chunk.Final)...)
	return vector{
		Description: "a request in one chunk, bound to the unit, with a receipt wanted, and its response",
		In:          in("session_secret", s.secret[:], "request", request, "response", response),
		Out: in("header", x.raw[:], "request_content", in1.first, "unit_id", prefix[:16], "response_nonce", prefix[16:],
			"response_content", plain[chunk.LengthSize:], "receipt", receipt),
	}
}

// streamVector returns a request of unknown length in parts, with a trailer and a ticket, and
// such a response.
func streamVector(t *testing.T, h *Host, s *Session) vector {
	t.Helper()
	x := testworld.Must(s.newRequest(h.ID(), noon.Add(30*time.Second), 0))
	parts := io.NopCloser(iotest.OneByteReader(strings.NewReader("ab")))
	up := testworld.Must(x.Stream(bhttp.Head{Method: "POST", Scheme: "https", Authority: "scoring.clinic.example", Path: "/score", Fields: http.Header{"Accept": {"text/plain"}}, Length: bhttp.Indeterminate}, parts, http.Header{"Sum": {"2"}}))
	request := testworld.Must(io.ReadAll(up))
	in1 := testworld.Must(h.findSession([wire.HeaderSize]byte(request), noon))
	if err := in1.openFirst(bytes.NewReader(request[wire.HeaderSize:]), atNoon); err != nil {
		t.Fatal(err)
	}
	var response bytes.Buffer
	r := testworld.Must(in1.Responder(&response))
	r.BufferContent([]byte("c"))
	testworld.Must(0, r.Begin(bhttp.Head{Status: 200, Fields: http.Header{"Content-Type": {"text/plain"}}, Length: bhttp.Indeterminate}))
	testworld.Must(0, r.Flush())
	testworld.Must(r.Write([]byte("d")))
	testworld.Must(0, r.Flush())
	testworld.Must(0, r.FinishStream(http.Header{"Sum": {"4"}}))
	return vector{
		Description: "a request of unknown length in parts, bound to the unit, with a trailer and the field of its ticket, and a response in parts with a trailer; contents are those of the chunks, one after the other",
		In:          in("session_secret", s.secret[:], "request", request, "response", response.Bytes(), "ticket_field", []byte(base64.RawURLEncoding.EncodeToString(s.ticket))),
		Out: in("header", x.raw[:], "sealed_session", s.ticket, "request_content", contentOf(t, s.secret, wire.LabelRequestKey, request[wire.HeaderSize:], request[:wire.HeaderSize]),
			"response_content", answerContent(t, s.secret, request, response.Bytes())),
	}
}

// contentOf returns the plaintext of all chunks of a message, whose key is derived with the label
// and the fields.
func contentOf(t *testing.T, secret [secretSize]byte, label wire.Label, message []byte, fields ...[]byte) (all []byte) {
	t.Helper()
	o := chunk.NewReader(bytes.NewReader(message), testworld.Must(newKeys(&secret).message(label, fields...)), nil)
	for {
		b, _, err := o.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
}

// answerContent returns the plaintext of all chunks of a response.
func answerContent(t *testing.T, secret [secretSize]byte, request, response []byte) []byte {
	t.Helper()
	return contentOf(t, secret, wire.LabelResponseKey, response[responsePrefix:], request[:wire.HeaderSize], response[:16], response[16:responsePrefix])
}

// plainVector returns the responses without content, and a tombstone.
func plainVector(t *testing.T, h *Host, s *Session) vector {
	t.Helper()
	x := testworld.Must(s.newRequest(h.ID(), noon.Add(30*time.Second), wire.FlagClose))
	request := testworld.Must(x.Whole(bhttp.Head{}, nil))
	in1 := testworld.Must(h.findSession([wire.HeaderSize]byte(request), noon))
	fault := testworld.Must(in1.responseWithoutContent(KindNotExecuted, wire.Malformed))
	tombstone := testworld.Must(in1.Close())
	closed := testworld.Must(in1.responseWithoutContent(KindClosed, ""))
	closing := closeKey(&s.secret)
	return vector{
		Description: "a request that closes the session; the response to it, and the one that says it was not executed; the tombstone",
		In:          in("session_secret", s.secret[:], "request", request, "closed", closed, "not_executed", fault),
		Out:         in("header", x.raw[:], "close_key", closing[:], "closed_content", in1.responsePrefix(KindClosed), "not_executed_content", append(in1.responsePrefix(KindNotExecuted), wire.Malformed...), "tombstone", tombstone),
	}
}

// TestVectors compares every message with testdata/vectors: derived values byte by byte; random
// and signed values by opening or verifying them.
func TestVectors(t *testing.T) {
	evidence := attest.Evidence{Platform: attest.Soft, Raw: []byte("evidence")}
	attested, _, _ := openVector(t, WantEvidence, evidence)
	open, h, s := openVector(t, 0, noEvidence)
	since, _, _ := openVector(t, wantHead, noEvidence)
	now := map[string]vector{"open": open, "open-evidence": attested, "open-head": since, "request": requestVector(t, h, s), "stream": streamVector(t, h, s), "ohttp": oneOffVector(t, h), "close": plainVector(t, h, s)}
	if *update {
		for name, v := range now {
			text := testworld.Must(json.MarshalIndent(v, "", "  "))
			if err := os.WriteFile(filepath.Join("testdata", "vectors", name+".json"), append(text, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept := map[string]vector{}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		var v vector
		if err := json.Unmarshal(testworld.Must(os.ReadFile(filepath.Join("testdata", "vectors", name+".json"))), &v); err != nil {
			t.Fatal(err)
		}
		kept[name] = v
	}
	checkOpen(t, kept["open"])
	checkOpen(t, kept["open-evidence"])
	checkOpen(t, kept["open-head"])
	checkRequest(t, kept["request"])
	checkStream(t, kept["stream"])
	checkClose(t, kept["close"], kept["open"])
	checkOneOff(t, kept["ohttp"])
	for _, name := range []string{"unit_id", "ring_id", "pin", "cookie_at_noon"} {
		if got, want := now["open"].Out[name], kept["open"].Out[name]; got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// oneOffVector returns a signed key configuration, and a one-off request in chunks under its
// first key, with its response.
func oneOffVector(t *testing.T, h *Host) vector {
	t.Helper()
	pin := unitauth.Pin{Genesis: h.credentials.Genesis, Task: h.credentials.Task}
	signed, plain, err := h.OHTTPKeys(pin, noon)
	if err != nil {
		t.Fatal(err)
	}
	keys := testworld.Must(unitauth.UnverifiedOHTTPKeys(plain))
	request := sealedOneOff(keys, ohttp.Chunks, "/score")
	x := testworld.Must(h.OpenOHTTP(ohttp.Chunks, bytes.NewReader(request), noon))
	content, _, err := x.body.Next()
	if err != nil {
		t.Fatal(err)
	}
	var response bytes.Buffer
	r := testworld.Must(x.Responder(&response))
	r.BufferContent([]byte("it"))
	testworld.Must(r.Whole(bhttp.Head{Status: 200, Fields: http.Header{"Content-Type": {"text/plain"}}}, nil))
	testworld.Must(0, r.Finish())
	follow := h.credentials.follow.key
	seed := testworld.Must(follow.Derive(32, wire.LabelOneOffKey, []byte{0x64, 0x7a}, ringBytes(follow.ID())))
	return vector{
		Description: "a signed key configuration of a follow ring; a one-off request in chunks under its first key, and its response; certificates are placeholders",
		In: in("follow_ring_key", follow.Expose(), "unit_key", testworld.Must(h.key.Bytes()), "identity", h.credentials.Identity[:], "genesis", h.credentials.Genesis[:],
			"authority_root", h.credentials.Root[:], "policy_head", h.credentials.Head[:], "signed", signed, "request", request, "response", response.Bytes()),
		Out: in("pin", pin.Encode(), "seed", seed, "key_configuration", plain, "request_content", content,
			"response_content", chunk.PadToBucket(testworld.Must(hex.DecodeString("0140c8180c636f6e74656e742d747970650a746578742f706c61696e026974")), 0)),
	}
}

func ringBytes(id identity.RingID) []byte { return id[:] }

// sealedOneOff returns a one-off request without content.
func sealedOneOff(keys unitauth.OHTTPKeys, form ohttp.Form, path string) []byte {
	h := bhttp.Head{Method: "GET", Scheme: "https", Authority: "scoring.clinic.example", Path: path}
	return testworld.Must(io.ReadAll(testworld.Must(SealOHTTP(keys, h, OHTTPRequestConfig{Form: form, Body: io.NopCloser(strings.NewReader(""))}))))
}

// checkOneOff derives keys and opens messages from a vector alone.
func checkOneOff(t *testing.T, v vector) {
	t.Helper()
	bytesOf := v.bytesOf
	r := ringOfKey(nil, testworld.Must(identity.OpenRingKey(bytesOf("follow_ring_key"), noon.Add(2*time.Hour))), attest.Digest{}, nil)
	private := testworld.Must(r.oneOffKey(0))
	if same := testworld.Must(ohttp.KEMs[0].DeriveKeyPair(bytesOf("seed"))); !bytes.Equal(same.PublicKey().Bytes(), private.PublicKey().Bytes()) {
		t.Error("another seed")
	}
	if got := testworld.Must(r.oneOffKeys()); !bytes.Equal(got, bytesOf("key_configuration")) {
		t.Errorf("got key configuration %x", got)
	}
	f := testworld.Must(wire.Unframe(wire.LabelOneOffKeys, bytesOf("signed"), 8))
	unit := testworld.Must(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytesOf("unit_key")))
	chain := wire.Sum(f[6])
	if err := unitauth.VerifyFields(&unit.PublicKey, f[7], wire.LabelOneOffKeys, append(slices.Clone(f[:6]), bytesOf("authority_root"), chain[:])...); err != nil {
		t.Error(err)
	}
	for i, name := range []string{"pin", "identity", "", "policy_head", "", "key_configuration"} {
		if name != "" && !bytes.Equal(f[i], bytesOf(name)) {
			t.Errorf("field %d is not %s", i+1, name)
		}
	}
	request, response := bytesOf("request"), bytesOf("response")
	c, enc := ohttp.ParseHeader([7]byte(request)), request[7:7+ohttp.KEMs[0].EncSize]
	if c != ohttp.ParseHeader([7]byte{r.key.ID()[0] &^ 1, 0x64, 0x7a, 0, 1, 0, 2}) {
		t.Errorf("got header %v", c)
	}
	recipient := testworld.Must(ohttp.Chunks.NewRecipient(c, enc, private))
	parts, err := readAll(&ohttp.Reader{Form: ohttp.Chunks, From: bytes.NewReader(request[7+len(enc):]), Open: recipient.Open})
	if err != nil || len(parts) != 1 || !bytes.Equal(parts[0], bytesOf("request_content")) {
		t.Errorf("request: got %x, %v", parts, err)
	}
	key := testworld.Must(ohttp.Chunks.ResponseCipher(recipient.Export, c, enc, response[:32]))
	parts, err = readAll(&ohttp.Reader{Form: ohttp.Chunks, From: bytes.NewReader(response[32:]), Open: key.Open})
	if err != nil || len(parts) != 1 || !bytes.Equal(parts[0], bytesOf("response_content")) {
		t.Errorf("answer: got %x, %v", parts, err)
	}
}

// checkOpen derives a session from a vector alone.
func checkOpen(t *testing.T, v vector) {
	t.Helper()
	bytesOf := v.bytesOf
	same := func(name string, got []byte) {
		t.Helper()
		if want := bytesOf(name); !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", name, got, want)
		}
	}
	private := testworld.Must(hpke.MLKEM768X25519().DeriveKeyPair(bytesOf("client_seed")))
	o, err := parseOpen(bytesOf("open_request"))
	if err != nil {
		t.Fatal(err)
	}
	same("pin", o.pin)
	a := testworld.Must(unverifiedResponse(bytesOf("response")))
	tr := &transcript{kemKey: o.kemKey, nonce: o.nonce, pin: o.pin, wants: o.wants, least: o.least, enc: a.enc, unit: wire.UnitID(a.unit), identity: attest.Digest(a.identity),
		root: attest.Digest(bytesOf("authority_root")), chain: wire.Sum(a.chain), ring: identity.RingID(a.ring), head: attest.Digest(a.head), expiry: uint64(noon.Add(time.Hour).Unix())}
	id := tr.sessionID(7)
	same("session_id", id[:])
	digest := tr.digest(id)
	same("transcript", digest[:])
	shared := testworld.Must(decapsulate(private, a.enc))
	same("kem_secret", shared)
	secret := testworld.Must(sessionSecret(shared, digest))
	same("session_secret", secret[:])
	data := testworld.Must(evidenceData(secret[:], digest))
	same("evidence_report_data", data[:])
	unit := testworld.Must(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytesOf("unit_key")))
	evidence, ticket := wire.Sum(a.evidence), wire.Sum(a.ticket)
	if err := unitauth.VerifyFields(&unit.PublicKey, a.signature, wire.LabelSessionSignature, digest[:], evidence[:], ticket[:], a.time); err != nil {
		t.Error(err)
	}
	key := testworld.Must(identity.OpenRingKey(bytesOf("follow_ring_key"), noon.Add(2*time.Hour)))
	r := ringOfKey(nil, key, tr.identity, o.pin)
	session := &session{id: id, expiry: tr.expiry, head: tr.head, opener: tr.unit, secret: secret}
	same("sealed_session", testworld.Must(r.sealMessage(envelope.Session, envelope.Header{For: tr.identity, Ring: key.ID(), Session: id, Expiry: tr.expiry, Sealer: tr.unit}, sealedBody(session, o.pin))))
	same("sealed_session", a.ticket)
	same("unit_time", a.time)
}

// checkRequest opens the request and the response of a vector.
func checkRequest(t *testing.T, v vector) {
	t.Helper()
	bytesOf := v.bytesOf
	secret := [secretSize]byte(bytesOf("session_secret"))
	request, response := bytesOf("request"), bytesOf("response")
	if !bytes.Equal(request[:wire.HeaderSize], bytesOf("header")) {
		t.Error("another header")
	}
	up := chunk.NewReader(bytes.NewReader(request[wire.HeaderSize:]), testworld.Must(newKeys(&secret).message(wire.LabelRequestKey, request[:wire.HeaderSize])), nil)
	got, at, err := up.Next()
	if err != nil || at != chunk.Final || !bytes.Equal(got, bytesOf("request_content")) {
		t.Errorf("request: got %x, %v", got, err)
	}
	down := chunk.NewReader(bytes.NewReader(response[responsePrefix:]), testworld.Must(newKeys(&secret).message(wire.LabelResponseKey, request[:wire.HeaderSize], response[:16], response[16:responsePrefix])), nil)
	for i, want := range [][]byte{bytesOf("response_content"), bytesOf("receipt")} {
		if got, _, err := down.Next(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("answer, chunk %d: got %x, %v", i, got, err)
		}
	}
}

// checkStream opens the request and the response of a vector of many chunks.
func checkStream(t *testing.T, v vector) {
	t.Helper()
	bytesOf := v.bytesOf
	secret := [secretSize]byte(bytesOf("session_secret"))
	request := bytesOf("request")
	for name, got := range map[string][]byte{
		"header":           request[:wire.HeaderSize],
		"request_content":  contentOf(t, secret, wire.LabelRequestKey, request[wire.HeaderSize:], request[:wire.HeaderSize]),
		"response_content": answerContent(t, secret, request, bytesOf("response")),
		"sealed_session":   testworld.Must(base64.RawURLEncoding.DecodeString(string(bytesOf("ticket_field")))),
	} {
		if want := bytesOf(name); !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", name, got, want)
		}
	}
}

// checkClose opens the responses without content and the tombstone of a vector.
func checkClose(t *testing.T, v, opened vector) {
	t.Helper()
	bytesOf := v.bytesOf
	secret := [secretSize]byte(bytesOf("session_secret"))
	header, closing := bytesOf("header"), closeKey(&secret)
	if !bytes.Equal(closing[:], bytesOf("close_key")) {
		t.Errorf("close key: got %x, want %x", closing, bytesOf("close_key"))
	}
	keys := map[string]*keys{"closed": newKeys(&closing), "not_executed": newKeys(&secret)}
	for name, want := range map[string][]byte{"closed": bytesOf("closed_content"), "not_executed": bytesOf("not_executed_content")} {
		response := bytesOf(name)
		o := chunk.NewReader(bytes.NewReader(response[responsePrefix:]), testworld.Must(keys[name].message(wire.LabelResponseKey, header, response[:16], response[16:responsePrefix])), nil)
		got, at, err := o.Next()
		if err != nil || at != chunk.Final || !bytes.Equal(got, chunk.PadToBucket(append(make([]byte, chunk.LengthSize), want...), chunk.LengthSize)[chunk.LengthSize:]) {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, want)
		}
	}
	key := testworld.Must(identity.OpenRingKey(testworld.Must(hex.DecodeString(opened.In["follow_ring_key"])), noon.Add(2*time.Hour)))
	r := ringOfKey(nil, key, attest.Digest{}, nil)
	u := testworld.Must(envelope.ParseSealed(envelope.Tombstone, bytesOf("tombstone")))
	if _, err := r.openSealed(u, nil); err != nil || u.Session.String() != opened.Out["session_id"] {
		t.Errorf("tombstone of %v: %v", u.Session, err)
	}
}
