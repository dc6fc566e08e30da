// Command page serves the chat page: static files, from an origin of their own, that check a
// cluster in the browser and stream from it through a gateway.
//
//	go run ./examples/chat/page --gateway http://127.0.0.1:8090 --genesis HEX --task chat
//
// The page is part of what its user trusts, because it contains the code that checks; the gateway
// is not. This program serves only files that are embedded in it, and the values of its flags. Its
// Content-Security-Policy lets the page run its own script, and reach the gateway and no other host.
//
// Files, each using those before it: server.go, main.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c settings
	listen := flag.String("listen", "127.0.0.1:8091", "address of the page; port 0 is any free port")
	flag.StringVar(&c.Gateway, "gateway", "", "URL of the gateway, as browsers reach it")
	flag.StringVar(&c.Genesis, "genesis", "", "genesis digest that the page proposes, 64 hexadecimal digits; its user compares it")
	flag.StringVar(&c.Task, "task", "chat", "task that the page proposes")
	flag.Parse()
	if err := run(ctx, *listen, c); err != nil {
		fmt.Fprintln(os.Stderr, "page:", err)
		os.Exit(1)
	}
}

// run serves the page until ctx is done.
func run(ctx context.Context, listen string, c settings) error {
	h, err := handler(c)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("page http://%s/\n", listener.Addr())
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}
