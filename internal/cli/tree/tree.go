// Package tree prints facts for people, one line a fact, each below the fact that it
// belongs to: with lines between them ([Node.Drawn]) or by indentation alone
// ([Node.Indented]). Every command that prints more than a few lines uses it.
package tree

import (
	"fmt"
	"strings"
)

// Node is a fact, and the facts below it. The text of a root may be empty: then its facts
// are side by side.
type Node struct {
	text  string
	more  []string // lines that go on with the text
	below []*Node
}

// New is the root of a tree.
func New(format string, args ...any) *Node { return &Node{text: fmt.Sprintf(format, args...)} }

// Add puts a fact below the node, after those that are there, and returns it.
func (n *Node) Add(format string, args ...any) *Node {
	added := New(format, args...)
	n.below = append(n.below, added)
	return added
}

// Append puts a tree below the node.
func (n *Node) Append(root *Node) { n.below = append(n.below, root) }

// AddLine adds a line to the text of the node.
func (n *Node) AddLine(format string, args ...any) {
	n.more = append(n.more, fmt.Sprintf(format, args...))
}

// Drawn is the tree with lines between a fact and those below it.
func (n *Node) Drawn() string {
	var b strings.Builder
	n.write(&b, "", "", "", func(last bool) (own, rest string) {
		if last {
			return "└─ ", "   "
		}
		return "├─ ", "│  "
	})
	return b.String()
}

// Indented is the tree with two spaces before the facts below another.
func (n *Node) Indented() string {
	var b strings.Builder
	n.write(&b, "", "", "", func(bool) (own, rest string) { return "  ", "  " })
	return b.String()
}

// write writes a node at a margin: its own line after own, and what is below it after rest.
func (n *Node) write(b *strings.Builder, margin, own, rest string, indent func(last bool) (own, rest string)) {
	if n.text != "" {
		b.WriteString(margin + own + n.text + "\n")
	}
	for _, line := range n.more {
		b.WriteString(margin + "   " + line + "\n")
	}
	for i, child := range n.below {
		first, others := "", ""
		if n.text != "" {
			first, others = indent(i == len(n.below)-1)
		}
		child.write(b, margin+rest, first, others, indent)
	}
}
