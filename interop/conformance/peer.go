package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// maxLine bounds a line of the implementation in bytes.
const maxLine = 4 << 20

// request is one line to the implementation.
type request struct {
	ID    int            `json:"id"`
	Op    string         `json:"op"`
	Input map[string]any `json:"input"`
}

// response is one line of the implementation. Exactly one of the last three members is present.
type response struct {
	ID          int             `json:"id"`
	Output      json.RawMessage `json:"output"`
	Refused     *string         `json:"refused"`
	Unsupported bool            `json:"unsupported"`
}

// peer is a running implementation.
type peer struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte // closed at the end of the output
}

// startPeer starts an implementation. Its standard error goes to stderr.
func startPeer(ctx context.Context, command []string, stderr io.Writer) (*peer, error) {
	p := &peer{cmd: exec.CommandContext(ctx, command[0], command[1:]...), lines: make(chan []byte)}
	p.cmd.Stderr, p.cmd.WaitDelay = stderr, time.Second
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.lines)
		s := bufio.NewScanner(out)
		s.Buffer(make([]byte, 64<<10), maxLine)
		for s.Scan() {
			select {
			case p.lines <- bytes.Clone(s.Bytes()):
			case <-ctx.Done():
				return
			}
		}
	}()
	return p, nil
}

// do writes a request and returns the response to it. An error means that the implementation does
// not follow the line protocol.
func (p *peer) do(r request, limit time.Duration) (response, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return response{}, err
	}
	// A write blocks when the implementation does not read. It ends with the implementation, and a
	// write that did not arrive is seen as a line that does not come.
	go p.in.Write(append(line, '\n'))
	late := time.After(limit)
	select {
	case raw, ok := <-p.lines:
		if !ok {
			return response{}, fmt.Errorf("its output ended, or had a line of more than %d bytes", maxLine)
		}
		return parseResponse(raw, r.ID)
	case <-late:
		return response{}, fmt.Errorf("no line within %v", limit)
	}
}

// parseResponse reads one line.
func parseResponse(raw []byte, id int) (r response, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("line %.80q: %w", raw, err)
	}
	forms := 0
	for _, present := range []bool{r.Output != nil, r.Refused != nil, r.Unsupported} {
		if present {
			forms++
		}
	}
	switch {
	case d.More():
		return r, fmt.Errorf("line %.80q: more than one value", raw)
	case r.ID != id:
		return r, fmt.Errorf("line %.80q: got id %d, want %d", raw, r.ID, id)
	case forms != 1:
		return r, fmt.Errorf("line %.80q: got %d of output, refused and unsupported, want 1", raw, forms)
	}
	return r, nil
}

// stop closes the input and waits a moment for the implementation to end.
func (p *peer) stop() error {
	p.in.Close()
	select {
	case raw, ok := <-p.lines:
		if ok {
			return fmt.Errorf("a line after the last case: %.80q", raw)
		}
		return p.cmd.Wait()
	case <-time.After(5 * time.Second):
		return errors.New("it runs 5 s after the end of its input")
	}
}
