package tree

import "testing"

func TestTree(t *testing.T) {
	root := New("cluster %d", 1)
	root.Add("code").Add("task  a")
	roles := root.Add("roles")
	bank := roles.Add("bank")
	bank.Add("north").AddLine("loads %s", "more")
	bank.Add("south")
	roles.Add("joiner").Add("east")
	const drawn = `cluster 1
├─ code
│  └─ task  a
└─ roles
   ├─ bank
   │  ├─ north
   │     loads more
   │  └─ south
   └─ joiner
      └─ east
`
	if got := root.Drawn(); got != drawn {
		t.Errorf("drawn:\n%s\nwant\n%s", got, drawn)
	}
	side := New("")
	side.Add("a").Add("b")
	side.Append(New("c"))
	if got, want := side.Indented(), "a\n  b\nc\n"; got != want {
		t.Errorf("indented: got %q, want %q", got, want)
	}
}
