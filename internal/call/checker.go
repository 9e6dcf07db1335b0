package call

import (
	"fmt"

	"github.com/landfall-dist/landfall/internal/identity"
)

// Checker checks what agents have signed for the buckets that their regions serve.
type Checker struct {
	Source *identity.Source
	Serves Serves
}

// Check says why a signature, as identity.Signer makes it, is not that of an agent of this
// name whose region serves the bucket.
func (c Checker) Check(bucket, agent, purpose string, message, signature []byte) error {
	p, err := c.Source.CheckEnclosed(purpose, message, signature)
	switch {
	case err != nil:
		return err
	case p.ID.Kind != identity.Agent || p.ID.Name != agent:
		return fmt.Errorf("it is signed by %s, and says it is of %.80q", p.ID, agent)
	case !c.Serves.Has(p.ID.Region, bucket):
		return fmt.Errorf("it is signed by %s, whose region does not serve %s, as --serves has it", p.ID, bucket)
	}
	return nil
}
