package attest

import (
	"time"
)

// PlatformInfo is everything that code outside a platform's own package knows of it.
// Each platform package returns one; attest/platforms has the table of all.
type PlatformInfo struct {
	// PolicyRules are what policy files may state about it, with its name and registers.
	PolicyRules
	Title string // for people
	// Appraiser makes the appraiser of its evidence.
	Appraiser func() Appraiser
	// Sources are the services that have its vendor's documents. Platforms may share one.
	Sources []Source
	// Documents lists the vendor's documents that belong to evidence, as far as it can be
	// read. Nothing in it is verified, so a document may be of another chip or of none.
	// Nil means that there are none.
	Documents func(unverified Evidence) []Document
	// Recognize reads evidence as a device of the platform returns it, outside a wrapper.
	// recognized is false, and e and err are zero, for what has another form.
	Recognize func(content []byte) (e Evidence, recognized bool, err error)
	// RawForm is what Recognize reads, for people. It is empty where Recognize is nil.
	RawForm string
	// MeasureImage computes the measurement of an image file, with notes for people. Nil
	// means that a measurement needs more than one file, or that there is no image.
	MeasureImage func(image []byte) (m Measurement, notes []string, err error)
	// Image is what MeasureImage reads, for people.
	Image string
}

// Recognizer is a [PlatformInfo.Recognize] for evidence in binary form.
func Recognizer(p Platform, is func(raw []byte) bool) func([]byte) (Evidence, bool, error) {
	return func(content []byte) (Evidence, bool, error) {
		if !is(content) {
			return Evidence{}, false, nil
		}
		return Evidence{Platform: p, Raw: content}, true, nil
	}
}

// Source is a service that has documents of a vendor.
type Source struct {
	Name  string // as the flags and settings of an authority have it
	Base  string // the vendor's own URL; a mirror has the same paths below its URL
	Usage string // for people
}

// DocumentKind states how long a document counts.
type DocumentKind int

// The kinds of documents.
const (
	CertificateDocument    DocumentKind = iota // never changes during its validity
	StatementDocument                          // the newest counts
	RevocationListDocument                     // the newest counts, and policy states what none means
)

// Document is one document of a vendor that belongs to evidence: what it is for, and
// where it is.
type Document struct {
	Role   string // in endorsements
	Kind   DocumentKind
	OfChip bool   // of one chip or model, of which evidence can name any number
	Name   string // in a mirror directory and in a cache; it ends in .pem for certificates in PEM
	Source string // name of the [Source] that has it
	Path   string // below the URL of the source
	// URL is where the evidence itself states that the document is. It is asked where the
	// source is the vendor's own, and Path where it is a mirror. Empty means Path for both.
	URL string
	// Chain is the header of the response that has the certificates of the signer, and
	// empty where the document has them.
	Chain string
	// Expires reads when a statement expires. It is nil for certificates and revocation
	// lists, which are X.509.
	Expires func(content []byte) (time.Time, error)
}
