package devcloud

import "github.com/truora/minidyn/server"

// attribute is an AttributeValue of the DynamoDB API. minidyn's own type drops
// an empty map, list or byte string when it is encoded, and with it the
// attribute's type, which makes the whole answer unreadable to the SDK.
type attribute struct {
	B    []byte                `json:",omitzero"`
	BOOL *bool                 `json:",omitzero"`
	BS   [][]byte              `json:",omitzero"`
	L    []*attribute          `json:",omitzero"`
	M    map[string]*attribute `json:",omitzero"`
	N    *string               `json:",omitzero"`
	NS   []*string             `json:",omitzero"`
	NULL *bool                 `json:",omitzero"`
	S    *string               `json:",omitzero"`
	SS   []*string             `json:",omitzero"`
}

type item = map[string]*attribute

func attributeOf(v *server.AttributeValue) *attribute {
	if v == nil {
		return nil
	}
	return &attribute{
		B: v.B, BOOL: v.BOOL, BS: v.BS, N: v.N, NS: v.NS, NULL: v.NULL, S: v.S, SS: v.SS,
		L: listOf(v.L), M: itemOf(v.M),
	}
}

// listOf and itemOf keep nil apart from empty.
func listOf(values []*server.AttributeValue) []*attribute {
	if values == nil {
		return nil
	}
	list := make([]*attribute, len(values))
	for i, v := range values {
		list[i] = attributeOf(v)
	}
	return list
}

func itemOf(values map[string]*server.AttributeValue) item {
	if values == nil {
		return nil
	}
	m := make(item, len(values))
	for name, v := range values {
		m[name] = attributeOf(v)
	}
	return m
}

func itemsOf(values []map[string]*server.AttributeValue) []item {
	items := make([]item, len(values))
	for i, v := range values {
		items[i] = itemOf(v)
	}
	return items
}

// answer turns one of minidyn's outputs into the JSON object that DynamoDB
// sends. What is empty at the top level is left out, as DynamoDB does.
func answer(out any) any {
	switch out := out.(type) {
	case *server.PutItemOutput:
		return struct{}{} // minidyn fills in the new item where the API has the old one
	case *server.UpdateItemOutput:
		return itemAnswer{Attributes: itemOf(out.Attributes)}
	case *server.DeleteItemOutput:
		return itemAnswer{Attributes: itemOf(out.Attributes)}
	case *server.GetItemOutput:
		return itemAnswer{Item: itemOf(out.Item)}
	case *server.QueryOutput:
		return pageAnswer{itemsOf(out.Items), out.Count, out.Count, itemOf(out.LastEvaluatedKey)}
	case *scanOutput:
		return pageAnswer{itemsOf(out.Items), out.Count, out.scanned, itemOf(out.LastEvaluatedKey)}
	case *server.BatchGetItemOutput:
		responses := make(map[string][]item, len(out.Responses))
		for table, items := range out.Responses {
			responses[table] = itemsOf(items)
		}
		return batchAnswer{responses, struct{}{}}
	case *server.TransactGetItemsOutput:
		responses := make([]itemAnswer, len(out.Responses))
		for i, r := range out.Responses {
			responses[i].Item = itemOf(r.Item)
		}
		return transactAnswer{responses}
	}
	return out
}

type itemAnswer struct {
	Attributes item `json:",omitempty"`
	Item       item `json:",omitempty"`
}

type pageAnswer struct {
	Items            []item
	Count            int32
	ScannedCount     int32
	LastEvaluatedKey item `json:",omitempty"`
}

type batchAnswer struct {
	Responses       map[string][]item
	UnprocessedKeys struct{}
}

type transactAnswer struct{ Responses []itemAnswer }
