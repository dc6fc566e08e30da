// Program is the program that the agent's tests run: an HTTP server without Cohort code, or a
// server that echoes bytes.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	mode := os.Args[1]
	switch mode {
	case "http":
		serve(os.Args[2])
	case "tcp":
		echo(os.Args[2])
	case "deaf":
		fmt.Print("d")
		time.Sleep(time.Hour)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		serve(os.Args[2])
	case "child":
		time.Sleep(time.Hour)
	}
	os.Exit(2)
}

func serve(port string) {
	var hups atomic.Int64
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for range signals {
			hups.Add(1)
		}
	}()
	http.HandleFunc("/start", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"args": os.Args, "env": os.Environ(), "pid": os.Getpid()})
	})
	http.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"header": r.Header, "host": r.Host, "proto": r.Proto})
	})
	http.HandleFunc("/hups", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, hups.Load()) })
	http.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	http.HandleFunc("/child", func(w http.ResponseWriter, r *http.Request) {
		c := exec.Command("/proc/self/exe", "child")
		if err := c.Start(); err != nil {
			log.Fatal(err)
		}
		fmt.Fprint(w, c.Process.Pid)
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	http.HandleFunc("/stream", stream)
	http.HandleFunc("/upgrade", upgrade)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}

// stream sends a line, and then echoes what it receives as it arrives.
func stream(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	c.EnableFullDuplex()
	io.WriteString(w, "ready\n")
	c.Flush()
	buffer := make([]byte, 100)
	for {
		n, err := r.Body.Read(buffer)
		w.Write(buffer[:n])
		c.Flush()
		if err != nil {
			return
		}
	}
}

// upgrade switches from HTTP to a protocol that echoes bytes.
func upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "echo" {
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	io.Copy(c, c)
}

// echo reads each connection to its end and then sends back all bytes. It resets a connection
// whose first bytes are "break".
func echo(port string) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			first := make([]byte, 5)
			n, _ := io.ReadFull(c, first)
			if string(first) == "break" {
				c.(*net.TCPConn).SetLinger(0)
				return
			}
			all, err := io.ReadAll(io.MultiReader(bytes.NewReader(first[:n]), c))
			if err != nil {
				fmt.Fprintln(os.Stderr, "broken:", err)
				return
			}
			c.Write(all)
		}()
	}
}
