package channel

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
)

// readVector reads one file of testdata/vectors.
func readVector(t testing.TB, name string) (v vector, bytesOf func(string) []byte) {
	t.Helper()
	if err := json.Unmarshal(testworld.Must(os.ReadFile(filepath.Join("testdata", "vectors", name+".json"))), &v); err != nil {
		t.Fatal(err)
	}
	return v, func(field string) []byte {
		t.Helper()
		text, ok := v.In[field]
		if !ok {
			text, ok = v.Out[field]
		}
		if !ok {
			t.Fatalf("%s has no %s", name, field)
		}
		return testworld.Must(hex.DecodeString(text))
	}
}

// readAll reads the chunks of a message.
func readAll(u *ohttp.Reader) (parts [][]byte, err error) {
	for {
		b, _, err := u.Next()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		parts = append(parts, b)
	}
}

// TestExamplesOfOHTTP runs the examples of RFC 9458, appendix A, and of the draft for chunks:
// their requests and responses are opened. A sender's encapsulated secret is random, so the test
// opens a request of this client with the example's private key.
func TestExamplesOfOHTTP(t *testing.T) {
	for _, c := range []struct {
		name string
		form ohttp.Form
	}{{"ohttp-rfc9458", ohttp.Whole}, {"ohttp-chunked-draft", ohttp.Chunks}} {
		t.Run(c.name, func(t *testing.T) {
			_, bytesOf := readVector(t, c.name)
			one := bytesOf("key_configuration")
			keys := testworld.Must(unitauth.UnverifiedOHTTPKeys(append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...)))
			private := testworld.Must(ohttp.KEMs[1].NewPrivateKey(bytesOf("private_key")))
			if got := keys.Key.Header; got != ohttp.ParseHeader([7]byte{1, 0, 0x20, 0, 1, 0, 1}) || !bytes.Equal(keys.Key.Public.Bytes(), private.PublicKey().Bytes()) {
				t.Errorf("got key %v", got)
			}
			request := bytesOf("encapsulated_request")
			header, enc := ohttp.ParseHeader([7]byte(request)), request[7:39]
			recipient := testworld.Must(c.form.NewRecipient(header, enc, private))
			u := &ohttp.Reader{Form: c.form, From: bytes.NewReader(request[39:]), Open: recipient.Open}
			parts, err := readAll(u)
			if got := bytes.Join(parts, nil); err != nil || !bytes.Equal(got, bytesOf("request")) {
				t.Errorf("request: got %x, %v", got, err)
			}
			nonce := bytesOf("response_nonce")
			seal := testworld.Must(c.form.ResponseCipher(recipient.Export, header, enc, nonce))
			out, response := &ohttp.Writer{Form: c.form, Seal: seal.Seal}, nonce
			for i := range 3 { // the draft's example has three chunks
				part := bytesOf("response")
				switch {
				case !c.form.Chunked && i < 2:
					continue
				case c.form.Chunked && i < 2:
					part = part[i : i+1+i]
				case c.form.Chunked:
					part = nil
				}
				add := out.Append
				if i == 2 {
					add = out.Finish
				}
				response = append(response, testworld.Must(add(part))...)
			}
			if want := bytesOf("encapsulated_response"); !bytes.Equal(response, want) {
				t.Errorf("answer: got %x, want %x", response, want)
			}
			open := testworld.Must(c.form.ResponseCipher(recipient.Export, header, enc, nonce))
			parts, err = readAll(&ohttp.Reader{Form: c.form, From: bytes.NewReader(response[len(nonce):]), Open: open.Open})
			if got := bytes.Join(parts, nil); err != nil || !bytes.Equal(got, bytesOf("response")) {
				t.Errorf("opened answer: got %x, %v", got, err)
			}
			theirs(t, c.form, keys, private)
		})
	}
}

// theirs opens, with the private key of an example, a request of this client for the example's
// key configuration.
func theirs(t *testing.T, f ohttp.Form, keys unitauth.OHTTPKeys, private hpke.PrivateKey) {
	t.Helper()
	sent := sealedOneOff(keys, f, "/")
	header := ohttp.ParseHeader([7]byte(sent))
	recipient := testworld.Must(f.NewRecipient(header, sent[7:39], private))
	h, _, err := (&ohttp.Reader{Form: f, From: bytes.NewReader(sent[39:]), Open: recipient.Open}).ReadHead(bhttp.ParseRequest)
	if err != nil || h.Method != "GET" || h.Authority != "scoring.clinic.example" || h.Path != "/" {
		t.Errorf("our request: got %v, %v", h, err)
	}
}
