package push

import (
	"slices"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Bounds say what the values of a column may be.
type Bounds struct {
	Type    catalogue.Type
	NotNull bool
	MaxText int // bytes
}

// TextTooLong returns the fault of a text above MaxText.
func (b *Bounds) TextTooLong() *Problem {
	if b.MaxText == MaxKeyBytes {
		return ValueKeyLong
	}
	return ValueTextLong
}

// Columns are the columns of an item's rows: some of its family's, its key
// among them, in any order.
type Columns struct {
	Family *catalogue.Family
	List   []batch.Column
	Bounds []Bounds // of each in List
}

// ColumnsOf returns no columns of the family yet.
func ColumnsOf(family *catalogue.Family) Columns {
	n := len(family.Columns)
	return Columns{Family: family, List: make([]batch.Column, 0, n), Bounds: make([]Bounds, 0, n)}
}

// Add adds the column of that name.
func (c *Columns) Add(name []byte, lim *Limits) *Problem {
	i, ok := c.Family.Column(string(name))
	if !ok {
		return ColumnUnknown
	}
	column := &c.Family.Columns[i]
	if slices.ContainsFunc(c.List, func(other batch.Column) bool { return other.Name == column.Name }) {
		return ColumnTwice
	}
	b := Bounds{Type: column.Type, NotNull: column.NotNull, MaxText: lim.MaxTextBytes}
	if column.NotNull { // a column of the key
		b.MaxText = min(b.MaxText, MaxKeyBytes)
	}
	c.List = append(c.List, batch.Column{Name: column.Name, Type: column.Type})
	c.Bounds = append(c.Bounds, b)
	return nil
}

// Complete checks that the columns suffice.
func (c *Columns) Complete() *Problem {
	if len(c.List) == 0 {
		return ColumnsInvalid
	}
	for _, key := range c.Family.Key {
		if !slices.ContainsFunc(c.List, func(column batch.Column) bool { return column.Name == key }) {
			return KeyMissing
		}
	}
	return nil
}
