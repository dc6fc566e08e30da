package wire

import "strings"

// ValidName reports whether s is a name as in policy: 1 to 63 of a-z, 0-9 and "-". Release
// names may also contain "." ([ValidReleaseName]).
func ValidName(s string) bool { return validName(s, "-") }

// ValidReleaseName reports whether s is 1 to 63 of a-z, 0-9, "-" and ".".
func ValidReleaseName(s string) bool { return validName(s, "-.") }

func validName(s, extra string) bool {
	if len(s) < 1 || len(s) > 63 {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(extra, c) {
			return false
		}
	}
	return true
}

// AuthorityPath is the SPIFFE path of an authority.
const AuthorityPath = "/authority"

// TaskPath is the SPIFFE path of a task.
func TaskPath(task string) string { return "/task/" + task }

// RolePath is the SPIFFE path of a role in a group.
func RolePath(group, role string) string { return "/group/" + group + "/role/" + role }
