package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/wire"
)

// etcdFanout returns N watchers of one etcd key, each over its own connection, or nil where
// etcd is not installed. etcd writes a put to disk before the watchers receive it. Only two
// gRPC calls are implemented: messages with a 5-byte prefix over HTTP/2.
func etcdFanout(b *testing.B, n int) *fanout {
	b.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		return nil
	}
	at := "http://" + loopback.FreeAddress(b)
	peer := "http://" + loopback.FreeAddress(b)
	server := exec.Command(path, "--data-dir", b.TempDir(), "--listen-client-urls", at, "--advertise-client-urls", at,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Process.Kill(); server.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if answer, err := http.Get(at + "/health"); err == nil {
			answer.Body.Close()
			break
		}
		if time.Now().After(end) {
			b.Fatal("etcd does not listen")
		}
	}
	f := &fanout{}
	for range n {
		request, in := io.Pipe()
		b.Cleanup(func() { in.Close() })
		out := etcdCall(b, at+"/etcdserverpb.Watch/Watch", request, func() {
			in.Write(grpcMessage(field(1, field(1, []byte("key")))))
		})
		if _, err := nextMessage(out); err != nil { // the watch exists
			b.Fatal(err)
		}
		go func() {
			for {
				if _, err := nextMessage(out); err != nil {
					return
				}
				f.heard.Done()
			}
		}()
	}
	put := grpcMessage(append(field(1, []byte("key")), field(2, sealedItem(wire.Digest{}, 0).Append(nil))...))
	speaker := http2Client()
	f.publish = func() {
		answer, err := speaker.Do(grpcRequest(b, at+"/etcdserverpb.KV/Put", bytes.NewReader(put)))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	return f
}

// etcdCall opens a stream, sends a message on it, and returns the response.
func etcdCall(b *testing.B, url string, request io.Reader, say func()) io.Reader {
	b.Helper()
	go say()
	answer, err := http2Client().Do(grpcRequest(b, url, request))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { answer.Body.Close() })
	return answer.Body
}

// http2Client returns a client with its own connection, without TLS.
func http2Client() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &p}}
}

func grpcRequest(b *testing.B, url string, body io.Reader) *http.Request {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, body)
	if err != nil {
		b.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	return r
}

// grpcMessage prefixes a message with its head: a zero byte for uncompressed, and the size.
func grpcMessage(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func nextMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("reading a message: %w", err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// field encodes bytes as field n of a Protocol Buffers message.
func field(n uint64, b []byte) []byte {
	return append(binary.AppendUvarint([]byte{byte(n<<3 | 2)}, uint64(len(b))), b...)
}
