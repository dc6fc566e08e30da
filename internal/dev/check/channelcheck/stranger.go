package channelcheck

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
)

// stranger is a client that can violate the protocol. It implements the channel of
// docs/spec/channel.md itself, so that it can send requests that Cohort's clients never send:
// any number, any expiry, any target, and repeated requests. It does not verify units.
type stranger struct {
	c      check.Checker
	client *http.Client // HTTP client for units, at the address in the context
	root   wire.Digest  // authority root
	ticket string
	id     wire.SessionID
	secret []byte
	at     []dev.Unit // each unit once, without those that have no health pages
	units  map[string]wire.UnitID
}

// newStranger makes a stranger, which opens a session at the first unit.
func newStranger(ctx context.Context, c check.Checker) (*stranger, error) {
	config, err := c.Plain()
	if err != nil {
		return nil, err
	}
	t, err := c.Trust(ctx)
	if err != nil {
		return nil, err
	}
	s := &stranger{c: c, root: t.Policy().Document().Authority.Root, units: map[string]wire.UnitID{}}
	s.client = &http.Client{Timeout: check.StepTime, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, DialContext: toAddress}}
	for _, u := range c.Cluster.Units {
		if _, known := s.units[u.Address]; known || u.Health == "" {
			continue
		}
		if s.units[u.Address], err = check.UnitAt(ctx, u); err != nil {
			return nil, err
		}
		s.at = append(s.at, u)
	}
	if len(s.at) == 0 {
		return nil, errors.New("no unit is described with its health pages")
	}
	return s, s.openSession(ctx)
}

// addressKey is the context key of the address that a stranger connects to.
type addressKey struct{}

func toAddress(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, ctx.Value(addressKey{}).(string))
}

// close closes idle connections.
func (s *stranger) close() { s.client.CloseIdleConnections() }

// postBytes sends a POST request to one unit, and returns the response and its content.
func (s *stranger) postBytes(ctx context.Context, address, path, kind string, body []byte) (*http.Response, []byte, error) {
	ctx = context.WithValue(ctx, addressKey{}, address)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.c.Cluster.ServerName+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", kind)
	if s.ticket != "" {
		r.Header.Set(wire.FieldTicket, s.ticket)
	}
	response, err := s.client.Do(r)
	if err != nil {
		return nil, nil, fmt.Errorf("unit %s: %w", address, err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response, b, err
}

// openSession opens a session with a pin of the task's name, and does not verify the unit.
func (s *stranger) openSession(ctx context.Context) error {
	genesis, err := wire.ParseDigest(s.c.Cluster.Genesis)
	if err != nil {
		return err
	}
	key, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return err
	}
	suite, nonce, wants := []byte{1}, make([]byte, 32), []byte{0}
	rand.Read(nonce)
	pin := wire.Frame(wire.LabelPin, []byte("task"), []byte(s.c.Cluster.Task), genesis[:])
	public := key.PublicKey().Bytes()
	_, b, err := s.postBytes(ctx, s.at[0].Address, wire.PathSession, wire.TypeSession, wire.Frame(wire.LabelSessionOpen, suite, public, nonce, pin, wants, nil))
	if err != nil {
		return err
	}
	f, err := wire.Unframe(wire.LabelSessionResponse, b, 12)
	if err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	recipient, err := hpke.NewRecipient(f[0], key, hpke.HKDFSHA256(), hpke.ExportOnly(), wire.Frame(wire.LabelSessionKEM, suite))
	if err != nil {
		return err
	}
	shared, err := recipient.Export(string(wire.LabelSessionKEM), 32)
	if err != nil {
		return err
	}
	chain := wire.Sum(f[7])
	transcript := wire.Hash(wire.LabelTranscript, suite, public, nonce, pin, wants, nil, f[0], f[1], f[2], f[3], s.root[:], chain[:], f[4], f[5], f[6])
	s.secret, err = hkdf.Key(sha256.New, shared, nil, string(wire.Frame(wire.LabelSessionSecret, transcript[:])), 32)
	s.id, s.ticket = wire.SessionID(f[1]), base64.RawURLEncoding.EncodeToString(f[10])
	return err
}

// requestClaims are the fields of a stranger's request.
type requestClaims struct {
	method string
	number uint64
	target wire.UnitID
	end    uint64 // expiry of the request, Unix milliseconds
}

// expiryIn returns the expiry d from now, in Unix milliseconds.
func expiryIn(d time.Duration) uint64 { return uint64(time.Now().Add(d).UnixMilli()) }

// sealed returns the bytes of a request: the header, and one encrypted chunk of Binary HTTP.
func (s *stranger) sealed(q requestClaims) ([]byte, error) {
	header := append([]byte{1}, s.id[:]...)
	header = append(header, wire.Uint64(q.number)...)
	header = append(header, q.target[:]...)
	header = append(append(header, wire.Uint64(q.end)...), 0)
	plain := []byte{0}
	for _, part := range []string{q.method, "https", s.c.Cluster.ServerName, "/"} {
		plain = append(append(plain, byte(len(part))), part...)
	}
	plain = append(plain, make([]byte, 512-len(plain))...) // no fields, no content, padding
	key, err := hkdf.Expand(sha256.New, s.secret, string(wire.Frame(wire.LabelRequestKey, header)), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(plain)+aead.Overhead())|1<<31)
	return append(header, aead.Seal(length, make([]byte, 12), plain, length)...), nil
}

// sendRequest sends a request to a unit, and returns the status of the response and the unit's
// time in its header, 0 if there is none.
func (s *stranger) sendRequest(ctx context.Context, u dev.Unit, q requestClaims) (status int, at int64, err error) {
	b, err := s.sealed(q)
	if err != nil {
		return 0, 0, err
	}
	response, _, err := s.postBytes(ctx, u.Address, wire.PathRequest, wire.TypeRequest, b)
	if err != nil {
		return 0, 0, err
	}
	at, _ = strconv.ParseInt(response.Header.Get(wire.FieldTime), 10, 64)
	return response.StatusCode, at, nil
}
