package policyfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/policy/policytoml"
)

// maxEnvValue is the length of one environment value in bytes.
const maxEnvValue = 4096

// The environment is not part of a measurement, so it may set a program up but
// never choose its code. Refused are variables by which loaders, C libraries and language
// runtimes load code, search for programs, extend trust or write secrets out, and those
// that the agent and the daemon set.
var (
	refusedEnv = []string{
		"BASH_ENV", "CLASSPATH", "ENV", "GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "GOCOVERDIR", "GODEBUG", "GOTRACEBACK",
		"HOSTALIASES", "IFS", "LOCALDOMAIN", "LOCPATH", "NLSPATH", "PATH", "PORT", "RES_OPTIONS", "SHELLOPTS", "SSLKEYLOGFILE",
		"TZDIR",
	}
	refusedEnvPrefixes = []string{
		"BUN_", "COHORT_", "CORECLR_", "COR_", "DENO_", "DOTNET_", "DYLD_", "ERL_", "GEM_", "GUILE_", "JAVA_", "JDK_", "JULIA_", "LD_", "LUA",
		"MALLOC_", "MONO_", "NODE_", "OPENSSL_", "PERL", "PHP", "PYTHON", "RUBY", "R_", "SSL_CERT_", "TCL", "_JAVA_",
	}
)

// readEnv reads the environment of a program.
func readEnv(release policytoml.Table) map[string]string {
	t, ok := release.ReadTable("env")
	if !ok {
		return nil
	}
	env := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(t.Values)) {
		if !envNameOK(name) {
			t.AddFault(name, "environment name", name, "A-Z, 0-9 and _, not a variable that chooses code")
		}
		env[name] = t.ReadText(name, "at most 4096 bytes without NUL", func(s string) bool { return len(s) <= maxEnvValue && noNUL(s) })
	}
	return env
}

func envNameOK(name string) bool {
	if name == "" || len(name) > 63 || strings.Contains("0123456789", name[:1]) ||
		strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return false
	}
	begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	return !slices.Contains(refusedEnv, name) && !slices.ContainsFunc(refusedEnvPrefixes, begins)
}
