package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// maxPlaceName bounds a table's name in what members tell each other, in bytes: they
// have 512 for everything, and DynamoDB's names may have 255.
const maxPlaceName = 64

// Place is where a table is. Members of a cluster tell it each other, since one that
// records arrivals elsewhere is not seen by the rest.
type Place struct {
	// Region is the AWS region, Account the AWS account's id.
	Region, Account string
	// Name is the table's, shortened with a hash where it is long.
	Name string
	// Replicas are the regions of a global table, this one included; nil for others.
	Replicas []string
	// Strong says that a global table reads its own writes in every region.
	Strong bool
}

// ErrGlobalTable says that members use an eventually consistent global table in
// different regions: one region's arrival overwrites another's.
var ErrGlobalTable = errors.New("global table is only eventually consistent")

// Place is where the table is, as the last Check or Create found, or Expect was told; zero
// before, and for a store that keeps no regions apart.
func (l *Ledger) Place() Place {
	if p := l.place.Load(); p != nil {
		return *p
	}
	return Place{}
}

// Expect has Place be what an earlier process has found, until Check finds it out.
func (l *Ledger) Expect(p Place) { l.place.Store(&p) }

// placeOf is nil where the store names no ARN: such a one keeps no regions apart, and
// what its clients call theirs says nothing.
func placeOf(t *types.TableDescription, region string) *Place {
	full, err := arn.Parse(aws.ToString(t.TableArn))
	if err != nil {
		return nil
	}
	p := &Place{Region: region, Account: full.AccountID, Strong: t.MultiRegionConsistency == types.MultiRegionConsistencyStrong}
	p.Name = TableName(full.Resource)
	for _, r := range t.Replicas {
		p.Replicas = append(p.Replicas, aws.ToString(r.RegionName))
	}
	if len(p.Replicas) > 0 && !slices.Contains(p.Replicas, region) {
		p.Replicas = append(p.Replicas, region)
	}
	return p
}

// TableName is the name of a table, which may be given by its ARN, as members tell it each
// other: shortened with a hash where it is longer than 64 bytes.
func TableName(table string) string {
	name := table[strings.LastIndexByte(table, '/')+1:]
	if len(name) > maxPlaceName {
		sum := sha256.Sum256([]byte(name))
		name = name[:maxPlaceName-9] + "-" + hex.EncodeToString(sum[:4])
	}
	return name
}

// String is REGION/ACCOUNT/NAME; empty for the zero Place.
func (p Place) String() string {
	if p.Name == "" {
		return ""
	}
	return p.Region + "/" + p.Account + "/" + p.Name
}

// Eventual reports whether the table is a global one whose regions may differ.
func (p Place) Eventual() bool { return len(p.Replicas) > 0 && !p.Strong }

// Of is the place that another member tells of as its Place's String, with what is
// known of this table's replicas; zero for what is no place.
func (p Place) Of(told string) Place {
	parts := strings.SplitN(told, "/", 3)
	if len(parts) != 3 {
		return Place{}
	}
	return Place{Region: parts[0], Account: parts[1], Name: parts[2], Replicas: p.Replicas, Strong: p.Strong}
}

// Differs says why other, a seeder's table, is not the same as this one, which is that
// of the member named, and what to give that member; nil where it is the same, where
// either is unknown, and where both are replicas of a strongly consistent global
// table. ErrGlobalTable for replicas of another.
func (p Place) Differs(member, seeder string, other Place) error {
	if p.Name == "" || other.Name == "" {
		return nil
	}
	region, account, name := other.Region, other.Account, other.Name
	sameTable := name == p.Name && account == p.Account
	if sameTable && (region == p.Region || p.Strong && slices.Contains(p.Replicas, region)) {
		return nil
	}
	if sameTable && slices.Contains(p.Replicas, region) {
		return fmt.Errorf("%s uses table %s in %s, %s in %s: the %w, and arrivals would be lost; give %s --table-region %s",
			member, p.Name, p.Region, seeder, region, ErrGlobalTable, member, region)
	}
	advice := "--table-region " + region
	switch {
	case name != p.Name:
		advice = "--table " + name + " " + advice
	case account != p.Account:
		advice = fmt.Sprintf("credentials of AWS account %s (these are of %s), or the table's ARN with --table", account, p.Account)
	}
	return fmt.Errorf("%s records arrivals in table %s of AWS region %s, %s reads table %s of %s; give %s %s",
		member, p.Name, p.Region, seeder, name, region, member, advice)
}
