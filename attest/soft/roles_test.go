package soft

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// roleSetting makes the test binary act as a launched program instead of running tests. The other
// settings are inputs of a role.
const (
	roleSetting   = "COHORT_TEST_ROLE"
	inputSetting  = "COHORT_TEST_INPUT"
	socketSetting = "COHORT_TEST_SOCKET"
)

// heard is the output of a program in a role.
type heard struct {
	Argv     []string
	Args     []string
	Environ  []string
	Evidence []byte
	Data     []byte
	Refusal  *wire.Refusal
}

// testData is the report data that all roles attest.
var testData = attest.BindReportData(wire.LabelTrust, []byte("test"))

var roles = map[string]func() heard{
	"report":   report,
	"seal":     sealing,
	"unseal":   unsealing,
	"agent":    agent,
	"write":    write,
	"line":     line,
	"core":     core,
	"replace":  replace,
	"sleep":    sleep,
	"stubborn": stubborn,
	"launcher": launcher,
	"daemon":   daemon,
	"public":   public,
	"tracer":   tracer,
	"parent":   parent,
}

func TestMain(m *testing.M) {
	role, ok := os.LookupEnv(roleSetting)
	if !ok {
		os.Exit(m.Run())
	}
	json.NewEncoder(os.Stdout).Encode(roles[role]())
	syscall.Exit(0) // directly, because os.Exit waits a second for the race detector
}

func (h heard) or(err error) heard {
	if err != nil {
		h.Refusal = refusalOf(err)
	}
	return h
}

// report returns what the program can see of itself, with evidence.
func report() heard {
	h := heard{Argv: os.Args, Environ: os.Environ()}
	device, err := Inherited()
	if err != nil {
		return h.or(err)
	}
	h.Args = device.Arguments()
	if _, ok := os.LookupEnv(variableFD); ok {
		return h.or(fmt.Errorf("%s is still set", variableFD))
	}
	return h.attest(device)
}

func (h heard) attest(device *Device) heard {
	evidence, err := device.Attest(context.Background(), testData)
	h.Evidence = evidence.Raw
	return h.or(err)
}

// sealing seals "secret" to the framed measurements in its input.
func sealing() heard {
	device, err := Inherited()
	if err != nil {
		return heard{}.or(err)
	}
	to, err := references(input())
	if err != nil {
		return heard{}.or(err)
	}
	data, err := device.Seal(context.Background(), []byte("secret"), to)
	return heard{Data: data}.or(err)
}

func unsealing() heard {
	device, err := Inherited()
	if err != nil {
		return heard{}.or(err)
	}
	data, err := device.Unseal(context.Background(), input()[0])
	return heard{Data: data}.or(err)
}

func input() [][]byte {
	var in [][]byte
	json.Unmarshal([]byte(os.Getenv(inputSetting)), &in)
	return in
}

// agent runs the measured program with the measured arguments.
func agent() heard {
	device, err := Inherited()
	if err != nil {
		return heard{}.or(err)
	}
	program, err := device.Program()
	if err != nil {
		return heard{}.or(err)
	}
	cmd := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd()), device.Arguments()...)
	cmd.Env = []string{}
	out, err := cmd.Output()
	return heard{Argv: os.Args, Args: device.Arguments(), Data: out}.or(err).attest(device)
}

// write tries every way to change the sealed program of an agent.
func write() heard {
	device, err := Inherited()
	if err != nil {
		return heard{}.or(err)
	}
	f, err := device.Program()
	if err != nil {
		return heard{}.or(err)
	}
	fd := int(f.Fd())
	var done []string
	attempt := func(name string, err error) {
		if err == nil {
			done = append(done, name)
		}
	}
	_, err = f.WriteAt([]byte("x"), 0)
	attempt("write", err)
	attempt("shrink", f.Truncate(1))
	attempt("grow", f.Truncate(maxProgram))
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, 0)
	attempt("change the seals", err)
	_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	attempt("map for writing", err)
	if again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0); err == nil {
		_, err = again.WriteAt([]byte("x"), 0)
		attempt("open again and write", err)
	}
	return heard{Args: done}
}

// line waits for a line on its standard input before it requests evidence.
func line() heard {
	device, err := Inherited()
	if err != nil {
		return heard{}.or(err)
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	return heard{}.attest(device)
}

// core lowers the soft limit of core files to 0, which any process may: with 0 the kernel still
// pipes a core to a handler.
func core() heard {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: noCore}); err != nil {
		return heard{}.or(err)
	}
	return report()
}

// replace executes a different program that keeps the device.
func replace() heard {
	os.Setenv(roleSetting, "report")
	return heard{}.or(syscall.Exec(os.Getenv(inputSetting), []string{argv0}, os.Environ()))
}

func sleep() heard {
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour) // without a timer the runtime would report a deadlock
	}
}

// parent starts a process and exits without it.
func parent() heard {
	left := exec.Command("/proc/self/exe")
	left.Env = []string{roleSetting + "=stubborn"}
	left.Stdout = os.Stdout
	return heard{}.or(left.Start())
}

func stubborn() heard {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

// launcher launches a sleeping program that shares its standard output, and waits for it.
func launcher() heard {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return heard{}.or(err)
	}
	p, err := Launch(context.Background(), os.Getenv(socketSetting), LaunchRequest{
		Program: self, Settings: map[string]string{roleSetting: "sleep"}, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		return heard{}.or(err)
	}
	_, err = p.Wait()
	return heard{}.or(err)
}

// daemon serves at the socket in its setting until it is killed.
func daemon() heard {
	d, err := NewDaemon(Config{Dir: os.Getenv(inputSetting)})
	if err != nil {
		return heard{}.or(err)
	}
	ln, err := Listen(os.Getenv(socketSetting))
	if err != nil {
		return heard{}.or(err)
	}
	fmt.Println("ready")
	return heard{}.or(d.Serve(context.Background(), ln))
}

// public uses a connection to the daemon's public socket as a device, like a program that an
// attacker connected before executing it.
func public() heard {
	d := &Device{conn: mustDial(os.Getenv(socketSetting))}
	return heard{}.attest(d)
}

// tracer attaches to a thread and lets it continue, with all its signals, until it ends. Tracing
// belongs to one thread of the tracer.
func tracer() heard {
	runtime.LockOSThread()
	tid, _ := strconv.Atoi(os.Getenv(inputSetting))
	if err := syscall.PtraceAttach(tid); err == syscall.EPERM {
		fmt.Println("forbidden")
		return heard{}
	} else if err != nil {
		return heard{}.or(err)
	}
	pass := 0
	for first := true; ; first = false {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(tid, &status, syscall.WALL, nil); err != nil || !status.Stopped() {
			return heard{}.or(err)
		}
		if !first {
			pass = int(status.StopSignal())
		}
		if err := syscall.PtraceCont(tid, pass); err != nil {
			return heard{}.or(err)
		}
		if first {
			fmt.Println("ready")
		}
	}
}

func mustDial(socket string) *net.UnixConn {
	conn, err := net.Dial(network, socket)
	if err != nil {
		panic(err)
	}
	return conn.(*net.UnixConn)
}

// decodeHeard decodes the last line that a role printed.
func decodeHeard(t *testing.T, out string) heard {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var h heard
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &h); err != nil {
		t.Fatalf("reading what the program printed: %v\n%s", err, out)
	}
	return h
}
