//go:build linux

package soft

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// validate refuses what would let the host choose more than settings, and text that
// a message cannot carry as it is.
func (m launchMessage) validate() error {
	for name, value := range m.Settings {
		if !settingOK(name) {
			return refuseCall("setting", name, "a name of A-Z, 0-9 and _ that begins with COHORT_")
		}
		if !textOK(value) {
			return refuseCall("setting "+name, fmt.Sprintf("%d bytes that are not such text", len(value)), "UTF-8 without a zero byte")
		}
	}
	if i := slices.IndexFunc(m.Args, func(arg string) bool { return !textOK(arg) }); i >= 0 {
		return refuseCall("argument "+strconv.Itoa(i+1), fmt.Sprintf("%d bytes that are not such text", len(m.Args[i])), "UTF-8 without a zero byte")
	}
	if m.Dir != "" && (!filepath.IsAbs(m.Dir) || !textOK(m.Dir)) {
		return refuseCall("directory", m.Dir, "an absolute path")
	}
	return nil
}

func textOK(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func settingOK(name string) bool {
	rest, ok := strings.CutPrefix(name, settingPrefix)
	return ok && rest != "" && name != variableFD &&
		strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// start seals the program and the agent, and starts the agent if there is one,
// else the program.
func (m launchMessage) start(files []*os.File) (*child, error) {
	program, err := sealImage(files[0])
	if err != nil {
		return nil, err
	}
	s := Statement{Program: program.digest, Arguments: Arguments(m.Args), Dynamic: program.dynamic}
	if len(files) == standardFiles {
		return m.execute(program, s, append([]string{argv0}, m.Args...), files[1:4])
	}
	defer program.file.Close()
	agent, err := sealImage(files[4])
	if err != nil {
		return nil, fmt.Errorf("taking the agent: %w", err)
	}
	s.Agent, s.Dynamic = agent.digest, agent.dynamic || program.dynamic
	return m.execute(agent, s, []string{argv0}, files[1:4], program.file)
}

// execute starts a sealed image with a device of its own. given are the
// descriptors that the child finds in its welcome.
func (m launchMessage) execute(i *image, s Statement, argv []string, stdio []*os.File, given ...*os.File) (*child, error) {
	device, far, err := devicePair()
	if err != nil {
		i.file.Close()
		return nil, err
	}
	defer far.Close()
	c := &child{image: i, statement: s, device: device, cmd: m.command(i, argv)}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = stdio[0], stdio[1], stdio[2]
	c.cmd.ExtraFiles = []*os.File{far}
	err = sendMessage(device, welcome{Args: m.Args}, given...)
	if err == nil {
		err = c.start()
	}
	if err != nil {
		device.Close()
		i.file.Close()
		return nil, err
	}
	return c, nil
}

// command is the child's command line and surroundings. The image is named
// through the daemon's own descriptor table, which the child's has not yet
// replaced when it executes.
func (m launchMessage) command(i *image, argv []string) *exec.Cmd {
	env := []string{variableFD + "=" + strconv.Itoa(childFD)}
	for name, value := range m.Settings {
		env = append(env, name+"="+value)
	}
	dir := m.Dir
	if dir == "" {
		dir = "/"
	}
	return &exec.Cmd{
		Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), i.file.Fd()),
		Args: argv, Env: env, Dir: dir,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
}

// devicePair makes the two ends of a device: the daemon's and the child's.
func devicePair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a device: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "device"), os.NewFile(uintptr(fds[1]), "device")
	conn, err := connOf(near)
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return conn, far, nil
}

// connOf makes a connection of a Unix socket's file and closes the file.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("opening a socket: not a Unix socket")
	}
	return socket, nil
}
