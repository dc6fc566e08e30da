// Package soft is the development TEE: a daemon that launches what it measures.
//
// It is for development only. Its root of trust is a key in a file, so any party that
// can read that file, or is root on the machine, can forge everything; policy
// accepts such a root only in a trust domain marked as development.
//
// What it does keep true is that evidence belongs to the program it names. The
// daemon copies the program it is handed into a write-sealed memory file,
// hashes that copy, executes that copy, and responds only over the socket pair
// it gave to the child. A file that changes after it was handed over, a process
// that connects to the daemon's socket and then executes another program, and a
// library forced in by the environment therefore gain nothing. Scripts are
// refused, since their interpreter would not be measured. Shared libraries are
// not measured either; evidence states so (dynamic), and policy decides.
//
// The appraiser of [Platform] appraises evidence. [NewDaemon] and [Daemon.Serve] are the daemon,
// [Launch] starts a program under it, and [Inherited] is the [Device] as the
// started program sees it.
//
// Files, each using those before it: message.go, program.go, keys.go, evidence.go,
// appraiser.go, listen.go, platform.go, seal.go, child.go, start.go, daemon.go,
// device.go, launch.go.
package soft
