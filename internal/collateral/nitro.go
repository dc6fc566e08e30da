package collateral

import "regexp"

// awsList is how AWS's certificates name the revocation lists of the root, and of
// an authority of a region. The hosts are AWS's buckets and no others, because
// nobody has checked the evidence yet. A region's name stands twice.
var awsList = regexp.MustCompile(`http://(?:aws-nitro-enclaves-crl\.s3|crl-([a-z0-9-]{5,30})-aws-nitro-enclaves\.s3\.([a-z0-9-]{5,30}))\.amazonaws\.com/crl/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.crl`)

// nitroItems reads where the lists are out of the certificates in a document: the
// first of each kind, for what an enclave itself says stands behind them.
func nitroItems(document []byte, source string) []item {
	if source == "" {
		return nil
	}
	var items []item
	found := map[string]bool{}
	for _, m := range awsList.FindAllSubmatch(document, -1) {
		role := "root_crl"
		if len(m[1]) > 0 {
			role = "region_crl"
		}
		if found[role] || string(m[1]) != string(m[2]) {
			continue
		}
		found[role] = true
		url := string(m[0])
		if source != AWS {
			url = at(source)("/crl/" + string(m[3]) + ".crl")
		}
		items = append(items, item{role: role, kind: list, name: "nitro/" + string(m[3]) + ".der", url: url})
	}
	return items
}
