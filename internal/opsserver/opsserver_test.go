package opsserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// start serves pages beside a function that ends with the test, and returns the address.
func start(t *testing.T) (address string, end func() error) {
	t.Helper()
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })
	go func() {
		done <- RunBeside(ctx, l, page, slog.New(slog.DiscardHandler), func(ctx context.Context) error { <-ctx.Done(); return nil })
	}()
	return l.Addr().String(), func() error { cancel(); return <-done }
}

// TestHosts: on loopback only requests for this machine are served, by name or address, and only
// those that change nothing.
func TestHosts(t *testing.T) {
	address, end := start(t)
	_, port, _ := net.SplitHostPort(address)
	for _, row := range []struct {
		method, host string
		want         int
	}{
		{"GET", address, 200}, {"GET", "localhost:" + port, 200}, {"GET", "LOCALHOST", 200}, {"GET", "127.0.0.9", 200}, {"GET", "[::1]:1", 200}, {"GET", "[::1]", 200},
		{"GET", "evil.example:" + port, 403}, {"GET", "localhost.evil.example", 403}, {"GET", "127.0.0.1.evil.example", 403}, {"GET", "192.0.2.1", 403}, {"GET", "localhost.", 403},
		{"POST", address, 400}, {"OPTIONS", address, 400}, {"HEAD", "evil.example", 403},
	} {
		r := testworld.Must(http.NewRequest(row.method, "http://"+address+"/", nil))
		r.Host = row.host
		response := testworld.Must(http.DefaultClient.Do(r))
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != row.want || (string(body) == "page") != (row.want == 200) {
			t.Errorf("%s for %s: got %d with %q, want %d", row.method, row.host, response.StatusCode, body, row.want)
		}
		if h := response.Header; h.Get("Cache-Control") != "no-store" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s for %s: got %v", row.method, row.host, h)
		}
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestEnds: the listener ends with the function beside it, although a peer stalls; and a listener
// that fails ends the function.
func TestEnds(t *testing.T) {
	address, end := start(t)
	conn := testworld.Must(net.Dial("tcp", address))
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil { // then it sends half a request
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET / HTTP/1.1\r\n")
	if err := end(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("the listener is open")
	}
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	l.Close()
	want := errors.New("its own error")
	err := RunBeside(t.Context(), l, http.NotFoundHandler(), slog.New(slog.DiscardHandler), func(ctx context.Context) error { <-ctx.Done(); return want })
	if !errors.Is(err, want) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: got %v, want both errors", err)
	}
	if err := RunBeside(t.Context(), nil, nil, nil, func(context.Context) error { return want }); !errors.Is(err, want) {
		t.Errorf("without a listener: got %v", err)
	}
}

// public is a listener that seems to have a public address.
type public struct{ net.Listener }

func (public) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero, Port: 1} }

// TestPublicAddress: an address that every host may reach is served, with a warning.
func TestPublicAddress(t *testing.T) {
	for warns, wrap := range map[bool]func(net.Listener) net.Listener{true: func(l net.Listener) net.Listener { return public{l} }, false: func(l net.Listener) net.Listener { return l }} {
		var log bytes.Buffer
		l := wrap(testworld.Must(net.Listen("tcp", "127.0.0.1:0")))
		err := RunBeside(t.Context(), l, http.NotFoundHandler(), slog.New(slog.NewTextHandler(&log, nil)), func(context.Context) error { return nil })
		if err != nil || strings.Contains(log.String(), "neither loopback nor private") != warns {
			t.Errorf("%v: got %v and %q", l.Addr(), err, log.String())
		}
	}
}

// TestIsLocal names addresses that no host of the Internet reaches.
func TestIsLocal(t *testing.T) {
	for text, want := range map[string]bool{
		"127.0.0.1": true, "127.255.255.255": true, "::1": true, "10.0.0.0": true, "10.255.255.255": true, "172.16.0.1": true, "172.31.255.255": true, "192.168.0.1": true, "169.254.1.1": true, "fd00::1": true, "fe80::1": true, "::ffff:127.0.0.1": true,
		"0.0.0.0": false, "::": false, "172.15.255.255": false, "172.32.0.0": false, "192.0.2.1": false, "2001:db8::1": false, "11.0.0.1": false, "128.0.0.1": false,
	} {
		if got := IsLocal(&net.TCPAddr{IP: net.ParseIP(text)}); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
	if IsLocal(&net.UnixAddr{Name: strings.Repeat("a", 3)}) {
		t.Error("an address without an IP is local")
	}
}
