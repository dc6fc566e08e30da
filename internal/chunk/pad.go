package chunk

import "slices"

// buckets are the sizes in bytes to which a message in one chunk is padded: 256
// bytes, 1, 4 and 16 KiB of content, with 256 bytes for the head.
var buckets = []int{512, 1280, 4352, 16640}

// BucketSize returns the size to which n bytes are padded.
func BucketSize(n int) int {
	i, _ := slices.BinarySearch(buckets, n)
	if i == len(buckets) {
		return n
	}
	return buckets[i]
}

// PadToBucket pads b, from the index from on, with zeros to the next bucket. A message
// larger than all buckets is not padded.
func PadToBucket(b []byte, from int) []byte {
	n := BucketSize(len(b) - from)
	b = slices.Grow(b, from+n-len(b)+TagSize)
	full := b[:from+n]
	clear(full[len(b):])
	return full
}
