package channel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// refusedCase is one message of testdata/vectors that was changed, with the reason for which a
// unit or client refuses it.
type refusedCase struct {
	Name    string `json:"name"`
	File    string `json:"file"`
	Message string `json:"message"` // a member of "in" or "out" of the file
	Edits   []edit `json:"edits,omitempty"`
	// With replaces inputs of the file, in hexadecimal.
	With   map[string]string `json:"with,omitempty"`
	Times  int               `json:"times,omitempty"` // deliveries, of which the last is refused; 0 is 1
	Reason wire.Reason       `json:"reason"`
}

// edit removes bytes at an offset of the original message and inserts others there.
type edit struct {
	At     int    `json:"at"`
	Remove int    `json:"remove,omitempty"`
	Insert string `json:"insert,omitempty"` // hexadecimal
}

// refusedFile is testdata/vectors/refused.json.
type refusedFile struct {
	Description string        `json:"description"`
	Cases       []refusedCase `json:"cases"`
}

// apply returns the message with all edits, whose offsets are in ascending order.
func apply(message []byte, edits []edit) []byte {
	out := bytes.Clone(message)
	for _, e := range slices.Backward(edits) {
		out = slices.Replace(out, e.At, e.At+e.Remove, testworld.Must(hex.DecodeString(e.Insert))...)
	}
	return out
}

// flipBit changes one bit of the byte at an offset.
func flipBit(message []byte, at int) edit {
	return edit{at, 1, hex.EncodeToString([]byte{message[at] ^ 1})}
}

// chunksOf returns the offsets at which chunks begin, and the end.
func chunksOf(message []byte, first int) []int {
	offsets := []int{first}
	for at := first; at < len(message); offsets = append(offsets, at) {
		at += chunk.LengthSize + int(binary.BigEndian.Uint32(message[at:])&(1<<31-1))
	}
	return offsets
}

// TestRefusedVectors: every changed message of testdata/vectors/refused.json is refused with its
// reason, and the messages that they were made of are not.
func TestRefusedVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors", "refused.json")
	if *update {
		file := refusedFile{
			"messages of the other files, each changed: a unit, or for responses a client, refuses it with the reason. Offsets of edits are those in the original message",
			refusedCases(t),
		}
		if err := os.WriteFile(path, append(testworld.Must(json.MarshalIndent(file, "", "  ")), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var file refusedFile
	if err := json.Unmarshal(testworld.Must(os.ReadFile(path)), &file); err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Cases {
		t.Run(strings.Join([]string{c.File, c.Message, c.Name}, ", "), func(t *testing.T) {
			if err := judge(t, refusedCase{File: c.File, Message: c.Message}); err != nil {
				t.Fatalf("the message as it was: %v", err)
			}
			if err := judge(t, c); wire.ReasonOf(err) != c.Reason {
				t.Errorf("got %v, want reason %q", err, c.Reason)
			}
		})
	}
}

// kept reads a vector and returns its values by name.
func kept(t *testing.T, file string, with map[string]string) func(name string) []byte {
	t.Helper()
	var v vector
	if err := json.Unmarshal(testworld.Must(os.ReadFile(filepath.Join("testdata", "vectors", file+".json"))), &v); err != nil {
		t.Fatal(err)
	}
	return func(name string) []byte {
		if text, ok := with[name]; ok {
			return testworld.Must(hex.DecodeString(text))
		}
		return v.bytesOf(name)
	}
}

// judge delivers the message of a case and returns the refusal of the last delivery.
func judge(t *testing.T, c refusedCase) (err error) {
	t.Helper()
	values := kept(t, c.File, c.With)
	message := apply(values(c.Message), c.Edits)
	_, h, _ := openVector(t, 0, noEvidence)
	h.spent = usedKEMKeys{} // the vector's own key is among them
	opened := kept(t, "open", nil)
	if c.Message != "sealed_session" && c.Message != "open_request" {
		testworld.Must(h.ImportSession(opened("sealed_session"), noon))
	}
	for range max(c.Times, 1) {
		switch c.Message {
		case "open_request":
			cookie := testworld.Must(h.Cookie(kept(t, "open", nil)("open_request"), noon))
			_, err = h.Accept(OpenRequest{Body: message, Cookie: cookie, Number: 9}, noon)
		case "sealed_session":
			_, err = h.ImportSession(message, noon)
		case "tombstone":
			_, err = h.Terminate(message, noon)
		case "request":
			err = judgeRequest(h, message)
		default:
			err = judgeResponse(values, message)
		}
	}
	return err
}

// judgeRequest is a unit that reads a request to its end.
func judgeRequest(h *Host, message []byte) error {
	if len(message) < wire.HeaderSize {
		return wire.Refuse(wire.Malformed, "request: header", len(message), wire.HeaderSize)
	}
	x, err := h.Open([wire.HeaderSize]byte(message), bytes.NewReader(message[wire.HeaderSize:]), noon)
	if err != nil {
		return err
	}
	if err := x.Authenticate(nil, atNoon); err != nil || x.Closes() {
		return err
	}
	if _, err := x.RequestHead(); err != nil {
		return err
	}
	for {
		_, next := x.Plaintext()
		if _, err := next.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// judgeResponse is a client that reads a response to its end.
func judgeResponse(values func(string) []byte, message []byte) error {
	raw := [wire.HeaderSize]byte(values("header"))
	header := testworld.Must(wire.ParseHeader(raw[:]))
	s := &Session{id: header.Session, expires: noon.Add(time.Hour), secret: [secretSize]byte(values("session_secret"))}
	x := testworld.Must(s.newRequest(header.Target, header.NotAfter, header.Flags))
	x.header, x.raw = header, raw
	a, err := x.Open(bytes.NewReader(message))
	if err == nil && a.Content != nil {
		_, err = io.Copy(io.Discard, a.Content)
	}
	return err
}

// refusedCases makes the cases from the vectors.
func refusedCases(t *testing.T) (list []refusedCase) {
	t.Helper()
	add := func(file, message, name string, reason wire.Reason, edits ...edit) {
		list = append(list, refusedCase{Name: name, File: file, Message: message, Edits: edits, Reason: reason})
	}
	secret := hex.EncodeToString(bytes.Repeat([]byte{7}, secretSize))

	for _, file := range []string{"request", "stream"} {
		values := kept(t, file, nil)
		for _, of := range []struct {
			message string
			first   int // offset of the first chunk
		}{{"request", wire.HeaderSize}, {"response", responsePrefix}} {
			message, first, b := of.message, of.first, values(of.message)
			at := chunksOf(b, first)
			last := len(at) - 2 // of the final chunk
			add(file, message, "a byte after the final chunk", wire.Malformed, edit{At: len(b), Insert: "00"})
			add(file, message, "a second final chunk", wire.Malformed, edit{At: len(b), Insert: hex.EncodeToString(b[at[last]:])})
			add(file, message, "the final chunk cut by a byte", wire.Truncated, edit{At: len(b) - 1, Remove: 1})
			add(file, message, "the first chunk's tag changed", wire.BadSignature, flipBit(b, at[1]-1))
			add(file, message, "the first chunk's ciphertext changed", wire.BadSignature, flipBit(b, at[0]+chunk.LengthSize))
			add(file, message, "a chunk above 64 KiB and its tag", wire.BadSignature, edit{at[0], chunk.LengthSize, "00010011"})
			add(file, message, "a chunk shorter than its tag", wire.BadSignature, edit{at[0], chunk.LengthSize, "8000000f"})
			add(file, message, "the mark of the final chunk removed", wire.BadSignature, edit{at[last], 1, hex.EncodeToString([]byte{b[at[last]] &^ 0x80})})
			add(file, message, "the mark of the final chunk set on the first", wire.BadSignature, edit{at[0], 1, hex.EncodeToString([]byte{b[at[0]] ^ 0x80})})
			if last > 0 {
				add(file, message, "without its final chunk", wire.Truncated, edit{At: at[last], Remove: len(b) - at[last]})
				add(file, message, "without its first chunk", wire.BadSignature, edit{At: at[0], Remove: at[1] - at[0]})
				add(file, message, "the first chunk twice", wire.BadSignature, edit{At: at[1], Insert: hex.EncodeToString(b[at[0]:at[1]])})
				add(file, message, "the first two chunks exchanged", wire.BadSignature,
					edit{At: at[0], Remove: at[2] - at[0], Insert: hex.EncodeToString(b[at[1]:at[2]]) + hex.EncodeToString(b[at[0]:at[1]])})
			}
		}
		request, response := values("request"), values("response")
		add(file, "request", "cut in its header", wire.Malformed, edit{At: wire.HeaderSize - 1, Remove: len(request) - wire.HeaderSize + 1})
		add(file, "request", "another version", wire.Malformed, edit{0, 1, "02"})
		add(file, "request", "a session that the unit does not have", wire.TicketWanted, flipBit(request, 1))
		add(file, "request", "another number", wire.BadSignature, edit{1 + 24, 8, "0000000000000fff"})
		add(file, "request", "number 0", wire.Malformed, edit{1 + 24, 8, "0000000000000000"})
		add(file, "request", "number 2^63", wire.Malformed, edit{1 + 24, 8, "8000000000000000"})
		add(file, "request", "another unit", wire.Misdirected, flipBit(request, 1+24+8))
		add(file, "request", "bound to no unit", wire.BadSignature, edit{1 + 24 + 8, 16, strings.Repeat("00", 16)})
		add(file, "request", "another end", wire.BadSignature, flipBit(request, 1+24+8+16+7))
		add(file, "request", "an unknown flag", wire.Malformed, edit{wire.HeaderSize - 1, 1, "04"})
		add(file, "request", "a receipt and a close", wire.Malformed, edit{wire.HeaderSize - 1, 1, "03"})
		list = append(list, refusedCase{Name: "sent twice", File: file, Message: "request", Times: 2, Reason: wire.Replayed})
		add(file, "response", "of another unit", wire.WrongIdentity, flipBit(response, 0))
		add(file, "response", "another nonce", wire.BadSignature, flipBit(response, 16))
		list = append(list, refusedCase{Name: "under another session's secret", File: file, Message: "response", With: map[string]string{"session_secret": secret}, Reason: wire.BadSignature})
	}

	values := kept(t, "close", nil)
	closed := values("closed")
	add("close", "closed", "a byte after the final chunk", wire.Malformed, edit{At: len(closed), Insert: "00"})
	add("close", "closed", "the response that says it was not executed, under the session secret", wire.BadSignature,
		edit{0, len(closed), hex.EncodeToString(values("not_executed"))})
	tombstone := values("tombstone")
	add("close", "tombstone", "a byte after it", wire.Malformed, edit{At: len(tombstone), Insert: "00"})
	add("close", "tombstone", "its tag changed", wire.BadSignature, flipBit(tombstone, len(tombstone)-1))

	values = kept(t, "open", nil)
	open, sealed := values("open_request"), values("sealed_session")
	label := 1 + len(wire.LabelSessionOpen)
	wants := len(open) - 4 - 1 // before the empty last field
	add("open", "open_request", "a byte after it", wire.Malformed, edit{At: len(open), Insert: "00"})
	add("open", "open_request", "cut by a byte", wire.Malformed, edit{At: len(open) - 1, Remove: 1})
	add("open", "open_request", "another label", wire.Malformed, flipBit(open, 1))
	add("open", "open_request", "another suite", wire.Malformed, edit{label + 4, 1, "02"})
	add("open", "open_request", "an unknown option", wire.Malformed, edit{wants, 1, "08"})
	add("open", "open_request", "a least policy head announced and not given", wire.Malformed, edit{wants, 1, "04"})
	add("open", "open_request", "above 2 KiB", wire.TooLarge, edit{At: len(open), Insert: strings.Repeat("00", MaxOpenRequest)})
	list = append(list, refusedCase{Name: "sent twice", File: "open", Message: "open_request", Times: 2, Reason: wire.Replayed})
	add("open", "sealed_session", "a byte after it", wire.Malformed, edit{At: len(sealed), Insert: "00"})
	add("open", "sealed_session", "cut by a byte", wire.Malformed, edit{At: len(sealed) - 1, Remove: 1})
	add("open", "sealed_session", "its tag changed", wire.BadSignature, flipBit(sealed, len(sealed)-1))
	ringID, identity := bytes.Index(sealed, values("ring_id")), bytes.Index(sealed, values("identity"))
	add("open", "sealed_session", "a ring key that the unit does not have", wire.UnknownRing, flipBit(sealed, ringID))
	add("open", "sealed_session", "another identity", wire.WrongIdentity, flipBit(sealed, identity))
	session := bytes.Index(sealed, values("session_id"))
	add("open", "sealed_session", "another session id", wire.BadSignature, flipBit(sealed, session))
	return list
}
