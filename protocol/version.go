package protocol

// The version of the protocol that this package speaks. Nodes of one major
// version interoperate: a minor version only adds frame types that may be
// ignored, fields at the end of a body (both marked in the frame flags), and
// what a feature bit that both sides have switches on.
const (
	Major = 1
	Minor = 0
)

// Features are the optional parts that this version has. Both sides use the
// intersection of what they offer in NodeHello.
const Features = FeatureReach | FeatureFailover | FeatureZstd

// FeatureReach: the node answers ReachAsk.
const FeatureReach uint64 = 1 << 0

// FeatureFailover: the node takes Failover.
const FeatureFailover uint64 = 1 << 1

// FeatureZstd: the node expands payloads that come compressed.
const FeatureZstd uint64 = 1 << 2

// Compatible says whether nodes of these versions can talk: same major.
func Compatible(a, b NodeHello) bool { return a.Major == b.Major }
