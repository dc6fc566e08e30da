package failpoint

import (
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
)

// Server returns the address of a PostgreSQL server through a proxy in this process, with a
// point before each piece of data in either direction.
func (p *Points) Server(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err)
	}
	query := u.Query()
	const socket = ".s.PGSQL.5432"
	real := filepath.Join(query.Get("host"), socket)
	dir, err := os.MkdirTemp("", "fp")
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.relay(c, real)
		}
	}()
	query.Set("host", dir)
	u.RawQuery = query.Encode()
	return u.String()
}

func (p *Points) relay(c net.Conn, socket string) {
	defer c.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer c.Close()
		io.Copy(piece{c, p, "from-server"}, server)
	}()
	io.Copy(piece{server, p, "to-server"}, c)
}

type piece struct {
	io.Writer
	points *Points
	name   string
}

func (w piece) Write(b []byte) (int, error) {
	w.points.PassPoint(w.name)
	return w.Writer.Write(b)
}
