// Package evidence compares this project's appraisers with other people's
// verifiers, over captured evidence and changes of it. It is a module of its own,
// so that they are no dependency of the product. docs/spec/evidence.md, section
// "Other verifiers", explains every disagreement that is allowed here.
package evidence
