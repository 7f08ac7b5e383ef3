package jsonpush_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
)

const other = `"01890a5d-ac96-774b-bcce-b302099a8057"` // a UUIDv7

func TestAFaultOfStructureRefusesTheBody(t *testing.T) {
	t.Parallel()
	numbering := func(members ...string) string {
		return body([]string{good}, append([]string{batchID(now)}, members...)...)
	}
	labels := make([]string, 65)
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d": ""`, i)
	}
	for name, test := range map[string]struct {
		body    string
		class   fault.Class
		code    string
		pointer string
	}{
		"empty":                       {"", fault.Invalid, "invalid_json", ""},
		"cut off":                     {body([]string{good})[:60], fault.Invalid, "invalid_json", ""},
		"cut off in rows":             {strings.TrimSuffix(body([]string{good}), "]}]}"), fault.Invalid, "invalid_json", ""},
		"comma too many":              {body([]string{`{"type": "narrow", "columns": ["v"], "rows": [[1],]}`}), fault.Invalid, "invalid_json", ""},
		"comma too few":               {body([]string{`{"type": "texts", "rows": [{"id": 1 "query": "x"}]}`}), fault.Invalid, "invalid_json", ""},
		"comma too few in a row":      {body([]string{`{"type": "narrow", "columns": ["v", "time"], "rows": [[1 "2026-03-04T05:06:00Z"]]}`}), fault.Invalid, "invalid_json", ""},
		"leading zero":                {body([]string{`{"type": "narrow", "columns": ["v"], "rows": [[01]]}`}), fault.Invalid, "invalid_json", ""},
		"NaN":                         {body([]string{`{"type": "narrow", "columns": ["v"], "rows": [[NaN]]}`}), fault.Invalid, "invalid_json", ""},
		"raw NUL":                     {body([]string{"{\"type\": \"a\x00\"}"}), fault.Invalid, "invalid_json", ""},
		"invalid UTF-8":               {body([]string{"{\"type\": \"a\xff\"}"}), fault.Invalid, "invalid_json", ""},
		"invalid UTF-8 in a row":      {body([]string{"{\"type\": \"narrow\", \"columns\": [\"v\"], \"rows\": [[\"\xc3\"]]}"}), fault.Invalid, "invalid_json", ""},
		"half a surrogate pair":       {body([]string{`{"type": "\ud800"}`}), fault.Invalid, "invalid_json", ""},
		"trailing text":               {body([]string{good}) + "x", fault.Invalid, "invalid_json", ""},
		"trailing value":              {body([]string{good}) + " {}", fault.Invalid, "invalid_json", ""},
		"byte order mark":             {"\ufeff" + body([]string{good}), fault.Invalid, "invalid_json", ""},
		"not an object":               {"[1]", fault.Invalid, "wrong_type", ""},
		"member twice":                {strings.Replace(body([]string{good}), "{", `{"version": "1", `, 1), fault.Invalid, "duplicate_name", ""},
		"member twice, escaped":       {strings.Replace(body([]string{good}), "{", `{"versio\u006e": "1", `, 1), fault.Invalid, "duplicate_name", ""},
		"item's member twice":         {body([]string{`{"type": "narrow", "type": "narrow"}`}), fault.Invalid, "duplicate_name", ""},
		"row's column twice":          {body([]string{`{"type": "narrow", "rows": [{"v": 1, "v": 2}]}`}), fault.Invalid, "duplicate_name", ""},
		"row's column twice, escaped": {body([]string{`{"type": "narrow", "rows": [{"v": 1, "\u0076": 2}]}`}), fault.Invalid, "duplicate_name", ""},
		"twice in a refused row":      {body([]string{`{"type": "narrow", "rows": [{"v": true, "v": 2}]}`}), fault.Invalid, "duplicate_name", ""},
		"twice behind no column":      {body([]string{`{"type": "narrow", "rows": [{"v": 1, "w": 2, "v": 3}]}`}), fault.Invalid, "duplicate_name", ""},
		"no column twice":             {body([]string{`{"type": "narrow", "rows": [{"w": [], "w": 3}]}`}), fault.Invalid, "duplicate_name", ""},
		"twice behind a value":        {body([]string{`{"type": "narrow", "rows": [{"v": {"v": 1}, "v": 3}]}`}), fault.Invalid, "duplicate_name", ""},
		"twice in what is passed":     {body([]string{`{"type": "none", "rows": [{"v": 1, "v": 2}]}`}), fault.Invalid, "duplicate_name", ""},
		"unknown member":              {body([]string{good}, `"extra": 1`), fault.Invalid, "unknown_member", "/extra"},
		"unknown member, unsafe":      {body([]string{good}, `"a b": 1`), fault.Invalid, "unknown_member", ""},

		"no collector":        {body([]string{good}, "-collector_id"), fault.Invalid, "member_missing", "/collector_id"},
		"null collector":      {body([]string{good}, `"collector_id": null`), fault.Invalid, "collector_id_invalid", "/collector_id"},
		"no hostname":         {body([]string{good}, "-hostname"), fault.Invalid, "member_missing", "/hostname"},
		"no timestamp":        {body([]string{good}, "-timestamp"), fault.Invalid, "timestamp_missing", "/timestamp"},
		"no version":          {body([]string{good}, "-version"), fault.Invalid, "member_missing", "/version"},
		"no metrics_count":    {body([]string{good}, "-metrics_count"), fault.Invalid, "member_missing", "/metrics_count"},
		"no metrics":          {`{"collector_id": "` + collector.String() + `"}`, fault.Invalid, "member_missing", "/hostname"},
		"other collector":     {body([]string{good}, `"collector_id": `+other), fault.Forbidden, "collector_id_mismatch", "/collector_id"},
		"collector in braces": {body([]string{good}, `"collector_id": "{`+collector.String()+`}"`), fault.Invalid, "collector_id_invalid", "/collector_id"},
		"empty hostname":      {body([]string{good}, `"hostname": ""`), fault.Invalid, "hostname_invalid", "/hostname"},
		"long hostname":       {body([]string{good}, `"hostname": "`+strings.Repeat("x", 256)+`"`), fault.Invalid, "hostname_invalid", "/hostname"},
		"hostname with NUL":   {body([]string{good}, `"hostname": "a\u0000"`), fault.Invalid, "hostname_invalid", "/hostname"},
		"version a number":    {body([]string{good}, `"version": 1`), fault.Invalid, "version_invalid", "/version"},
		"timestamp a number":  {body([]string{good}, `"timestamp": 1`), fault.Invalid, "timestamp_invalid", "/timestamp"},
		"timestamp no date":   {body([]string{good}, `"timestamp": "2026-02-30T00:00:00Z"`), fault.Invalid, "timestamp_invalid", "/timestamp"},
		"timestamp infinite":  {body([]string{good}, `"timestamp": "infinity"`), fault.Invalid, "timestamp_invalid", "/timestamp"},
		"metrics an object":   {strings.Replace(body(nil), `"metrics": []`, `"metrics": {}`, 1), fault.Invalid, "wrong_type", "/metrics"},
		"count too large":     {body([]string{good}, `"metrics_count": 2`), fault.Invalid, "metrics_count_mismatch", "/metrics_count"},
		"count too small":     {body([]string{good}, `"metrics_count": 0`), fault.Invalid, "metrics_count_mismatch", "/metrics_count"},
		"count not whole":     {body([]string{good}, `"metrics_count": 1.5`), fault.Invalid, "wrong_type", "/metrics_count"},
		"batch_id version 4":  {body([]string{good}, `"batch_id": "7f1c2a34-0b1d-4c5e-8f70-112233445566"`), fault.Invalid, "batch_id_invalid", "/batch_id"},
		"batch_id no UUID":    {body([]string{good}, `"batch_id": "1"`), fault.Invalid, "batch_id_invalid", "/batch_id"},
		"batch_id variant":    {body([]string{good}, `"batch_id": "01890a5d-ac96-774b-ccce-b302099a8057"`), fault.Invalid, "batch_id_invalid", "/batch_id"},

		"epoch alone":             {numbering(`"epoch": ` + other), fault.Invalid, "numbering_invalid", "/sequence"},
		"sequence alone":          {numbering(`"sequence": 1`), fault.Invalid, "numbering_invalid", "/sequence"},
		"sequence zero":           {numbering(`"epoch": `+other, `"sequence": 0`), fault.Invalid, "numbering_invalid", "/sequence"},
		"sequence beyond bigint":  {numbering(`"epoch": `+other, `"sequence": 9223372036854775808`), fault.Invalid, "numbering_invalid", "/sequence"},
		"epoch version 4":         {numbering(`"epoch": "`+collector.String()+`"`, `"sequence": 1`), fault.Invalid, "numbering_invalid", "/epoch"},
		"refused alone":           {numbering(`"refused": [1]`), fault.Invalid, "numbering_invalid", "/epoch"},
		"refused not below":       {numbering(`"epoch": `+other, `"sequence": 3`, `"refused": [3]`), fault.Invalid, "numbering_invalid", "/refused"},
		"refused too many":        {numbering(`"epoch": `+other, `"sequence": 3`, `"refused": [1`+strings.Repeat(",1", 1000)+`]`), fault.Invalid, "numbering_invalid", "/refused"},
		"previous later":          {numbering(`"epoch": `+other, `"sequence": 2`, `"previous": {"epoch": "`+v7(now, 9).String()+`", "sequence": 7}`), fault.Invalid, "numbering_invalid", "/previous"},
		"previous of same epoch":  {numbering(`"epoch": `+other, `"sequence": 1`, `"previous": {"epoch": `+other+`, "sequence": 7}`), fault.Invalid, "numbering_invalid", "/previous"},
		"previous without number": {numbering(`"epoch": `+other, `"sequence": 1`, `"previous": {"epoch": "`+v7(now, 9).String()+`"}`), fault.Invalid, "numbering_invalid", "/previous"},
		"previous with more":      {numbering(`"epoch": `+other, `"sequence": 1`, `"previous": {"x": 1}`), fault.Invalid, "unknown_member", "/previous"},

		"labels an array":     {body([]string{good}, `"labels": []`), fault.Invalid, "labels_invalid", "/labels"},
		"label not a text":    {body([]string{good}, `"labels": {"a": 1}`), fault.Invalid, "labels_invalid", "/labels"},
		"label name":          {body([]string{good}, `"labels": {"a-b": "1"}`), fault.Invalid, "labels_invalid", "/labels"},
		"label name empty":    {body([]string{good}, `"labels": {"": "1"}`), fault.Invalid, "labels_invalid", "/labels"},
		"label value control": {body([]string{good}, `"labels": {"a": "\n"}`), fault.Invalid, "labels_invalid", "/labels"},
		"65 labels":           {body([]string{good}, `"labels": {`+strings.Join(labels, ",")+`}`), fault.Invalid, "labels_invalid", "/labels"},

		"no items, no numbering": {body(nil), fault.Invalid, "metrics_empty", "/metrics"},
		"too old by timestamp":   {body([]string{good}, `"timestamp": "2026-02-02T05:06:07Z"`), fault.Invalid, "batch_too_old", ""},
		"too old by id":          {body([]string{good}, batchID(now.Add(-30*24*time.Hour-time.Second))), fault.Invalid, "batch_too_old", ""},
		"ahead by timestamp":     {body([]string{good}, `"timestamp": "2026-03-04T05:16:08Z"`), fault.Unprocessable, "clock_skew", ""},
		"ahead by id":            {body([]string{good}, batchID(now.Add(10*time.Minute+time.Second))), fault.Unprocessable, "clock_skew", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, report, err := decode(t, test.body)
			f := requireFault(t, err, test.class, test.code)
			require.Nil(t, b)
			require.Nil(t, report)
			if test.pointer != "" {
				require.Len(t, f.Fields, 1)
				require.Equal(t, test.pointer, f.Fields[0].Pointer)
			}
		})
	}
}

// all returns an all_types item with one row: the two keys, then one value.
func all(column, value string) string {
	return fmt.Sprintf(`{"type": "all_types", "columns": ["k", "n", %q], "rows": [["a", 1, null], ["a", 1, %s]]}`, column, value)
}

func TestAFaultWithinAnItemRefusesThatItemAlone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		item    string
		pointer string // below /metrics/1
		code    string
	}{
		"no object":             {`1`, "", "wrong_type"},
		"null":                  {`null`, "", "wrong_type"},
		"no type":               {`{"columns": ["v"], "rows": [[1]]}`, "", "member_missing"},
		"no rows":               {`{"type": "narrow", "columns": ["v"]}`, "", "member_missing"},
		"unknown member":        {`{"type": "narrow", "extra": 1, "columns": ["v"], "rows": [[1]]}`, "/extra", "unknown_member"},
		"unknown family":        {`{"type": "none", "columns": ["v"], "rows": [[1]]}`, "/type", "unknown_family"},
		"family a number":       {`{"type": 1, "columns": ["v"], "rows": [[1]]}`, "/type", "unknown_family"},
		"empty server":          {`{"type": "narrow", "server": "", "columns": ["v"], "rows": [[1]]}`, "/server", "server_invalid"},
		"server with control":   {`{"type": "narrow", "server": "a\u0085", "columns": ["v"], "rows": [[1]]}`, "/server", "server_invalid"},
		"long server":           {`{"type": "narrow", "server": "` + strings.Repeat("é", 128) + `", "columns": ["v"], "rows": [[1]]}`, "/server", "server_invalid"},
		"timestamp":             {`{"type": "narrow", "timestamp": "yesterday", "columns": ["v"], "rows": [[1]]}`, "/timestamp", "timestamp_invalid"},
		"columns no array":      {`{"type": "narrow", "columns": "v", "rows": [[1]]}`, "/columns", "columns_invalid"},
		"columns not texts":     {`{"type": "narrow", "columns": [1], "rows": [[1]]}`, "/columns/0", "columns_invalid"},
		"columns nested":        {`{"type": "narrow", "columns": [["v"]], "rows": [[1]]}`, "/columns/0", "columns_invalid"},
		"no columns":            {`{"type": "narrow", "rows": [[1]]}`, "", "columns_missing"},
		"empty columns":         {`{"type": "narrow", "columns": [], "rows": [[]]}`, "/columns", "columns_invalid"},
		"only time":             {`{"type": "narrow", "columns": ["time"], "rows": []}`, "/columns", "columns_invalid"},
		"unknown column":        {`{"type": "narrow", "columns": ["v", "w"], "rows": [[1, 2]]}`, "/columns/1", "unknown_column"},
		"server_id":             {`{"type": "narrow", "columns": ["v", "server_id"], "rows": [[1, 2]]}`, "/columns/1", "unknown_column"},
		"column twice":          {`{"type": "narrow", "columns": ["v", "v"], "rows": [[1, 2]]}`, "/columns/1", "duplicate_column"},
		"time twice":            {`{"type": "narrow", "columns": ["time", "v", "time"], "rows": []}`, "/columns/2", "duplicate_column"},
		"key missing":           {`{"type": "all_types", "columns": ["k", "b"], "rows": [["a", true]]}`, "/columns", "key_missing"},
		"key null":              {`{"type": "all_types", "columns": ["k", "n"], "rows": [["a", null]]}`, "/rows/0/1", "null_not_allowed"},
		"key long":              {`{"type": "all_types", "columns": ["k", "n"], "rows": [["` + strings.Repeat("k", 2001) + `", 1]]}`, "/rows/0/0", "key_too_long"},
		"dimension without key": {`{"type": "texts", "columns": ["query"], "rows": [["x"]]}`, "/columns", "key_missing"},
		"rows no array":         {`{"type": "narrow", "columns": ["v"], "rows": {}}`, "/rows", "wrong_type"},
		"rows null":             {`{"type": "narrow", "columns": ["v"], "rows": null}`, "/rows", "wrong_type"},
		"row a number":          {`{"type": "narrow", "columns": ["v"], "rows": [1]}`, "/rows/0", "wrong_type"},
		"row too short":         {`{"type": "all_types", "columns": ["k", "n"], "rows": [["a", 1], ["a"]]}`, "/rows/1", "wrong_arity"},
		"row too long":          {`{"type": "narrow", "columns": ["v"], "rows": [[1], [1, 2]]}`, "/rows/1", "wrong_arity"},
		"row too long, nested":  {`{"type": "narrow", "columns": ["v"], "rows": [[1, [2]]]}`, "/rows/0", "wrong_arity"},
		"empty row":             {`{"type": "narrow", "columns": ["v"], "rows": [[]]}`, "/rows/0", "wrong_arity"},
		"mixed rows":            {`{"type": "narrow", "columns": ["v"], "rows": [[1], {"v": 1}]}`, "/rows/1", "wrong_type"},
		"mixed rows, by name":   {`{"type": "narrow", "rows": [{"v": 1}, [1]]}`, "/rows/1", "wrong_type"},
		"columns and names":     {`{"type": "narrow", "columns": ["v"], "rows": [{"v": 1}]}`, "/columns", "columns_unexpected"},
		"names, then columns":   {`{"type": "narrow", "rows": [{"v": 1}], "columns": ["v"]}`, "/columns", "columns_unexpected"},
		"name unknown":          {`{"type": "narrow", "rows": [{"v": 1, "w": 1}]}`, "/rows/0", "unknown_column"},
		"name of a key absent":  {`{"type": "all_types", "rows": [{"k": "a"}]}`, "/rows/0/n", "null_not_allowed"},
		"nested by name":        {`{"type": "narrow", "rows": [{"v": {"v": 1}}]}`, "/rows/0/v", "wrong_type"},
		"time in some rows":     {`{"type": "narrow", "rows": [{"v": 1, "time": "2026-03-04T05:06:00Z"}, {"v": 2}]}`, "/rows/1", "time_missing"},
		"time in later rows":    {`{"type": "narrow", "rows": [{"v": 1}, {"v": 2, "time": "2026-03-04T05:06:00Z"}]}`, "/rows/1", "time_missing"},
		"time null":             {`{"type": "narrow", "columns": ["v", "time"], "rows": [[1, null]]}`, "/rows/0/1", "null_not_allowed"},
		"time a number":         {`{"type": "narrow", "columns": ["v", "time"], "rows": [[1, 5]]}`, "/rows/0/1", "invalid_time"},
		"row time too old":      {`{"type": "narrow", "columns": ["time", "v"], "rows": [["2026-03-04T05:06:00Z", 1], ["2026-03-02T05:05:59Z", 1]]}`, "/rows/1", "time_out_of_range"},
		"row time ahead":        {`{"type": "narrow", "columns": ["time", "v"], "rows": [["2026-03-04T05:06:00Z", 1], ["2026-03-04T05:16:01Z", 1]]}`, "/rows/1", "time_out_of_range"},
		"item time too old":     {`{"type": "narrow", "timestamp": "2026-03-02T05:05:59Z", "columns": ["v"], "rows": [[1]]}`, "/timestamp", "time_out_of_range"},

		"bigint too large":    {all("i8", "9223372036854775808"), "/rows/1/2", "number_out_of_range"},
		"bigint too small":    {all("i8", "-9223372036854775809"), "/rows/1/2", "number_out_of_range"},
		"bigint far too big":  {all("i8", "1e999999999999999999999"), "/rows/1/2", "number_out_of_range"},
		"bigint text empty":   {all("i8", `""`), "/rows/1/2", "not_an_integer"},
		"bigint text spaces":  {all("i8", `" 1"`), "/rows/1/2", "not_an_integer"},
		"bigint text plus":    {all("i8", `"+1"`), "/rows/1/2", "not_an_integer"},
		"bigint text float":   {all("i8", `"1e3"`), "/rows/1/2", "not_an_integer"},
		"bigint text large":   {all("i8", `"9223372036854775808"`), "/rows/1/2", "number_out_of_range"},
		"bigint fraction":     {all("i8", "1.5"), "/rows/1/2", "not_an_integer"},
		"bigint tiny":         {all("i8", "1e-999999999999"), "/rows/1/2", "not_an_integer"},
		"bigint boolean":      {all("i8", "true"), "/rows/1/2", "wrong_type"},
		"integer too large":   {all("i4", "2147483648"), "/rows/1/2", "number_out_of_range"},
		"integer too small":   {all("i4", "-2147483649"), "/rows/1/2", "number_out_of_range"},
		"integer a text":      {all("i4", `"1"`), "/rows/1/2", "wrong_type"},
		"smallint too large":  {all("i2", "32768"), "/rows/1/2", "number_out_of_range"},
		"smallint too small":  {all("i2", "-32769"), "/rows/1/2", "number_out_of_range"},
		"real overflow":       {all("f4", "3.5e38"), "/rows/1/2", "number_out_of_range"},
		"real a text":         {all("f4", `"NaN"`), "/rows/1/2", "wrong_type"},
		"double overflow":     {all("f8", "-1e309"), "/rows/1/2", "number_out_of_range"},
		"double a text":       {all("f8", `"1.5"`), "/rows/1/2", "wrong_type"},
		"boolean a number":    {all("b", "1"), "/rows/1/2", "wrong_type"},
		"boolean a text":      {all("b", `"true"`), "/rows/1/2", "wrong_type"},
		"text a number":       {all("s", "1"), "/rows/1/2", "wrong_type"},
		"text nested":         {all("s", `["x"]`), "/rows/1/2", "wrong_type"},
		"text with NUL":       {all("s", `"a\u0000b"`), "/rows/1/2", "nul_character"},
		"text long":           {all("s", `"`+strings.Repeat("x", 1<<20+1)+`"`), "/rows/1/2", "text_too_long"},
		"text long, escaped":  {all("s", `"\n`+strings.Repeat("x", 1<<20)+`"`), "/rows/1/2", "text_too_long"},
		"uuid in braces":      {all("u", `"{`+collector.String()+`}"`), "/rows/1/2", "invalid_uuid"},
		"uuid without hyphen": {all("u", `"`+strings.ReplaceAll(collector.String(), "-", "")+`"`), "/rows/1/2", "invalid_uuid"},
		"uuid a number":       {all("u", "1"), "/rows/1/2", "wrong_type"},
		"time infinite":       {all("ts", `"infinity"`), "/rows/1/2", "invalid_time"},
		"time without zone":   {all("ts", `"2026-03-04T05:06:07"`), "/rows/1/2", "invalid_time"},
		"time a date":         {all("ts", `"2026-03-04"`), "/rows/1/2", "invalid_time"},
		"time ten digits":     {all("ts", `"2026-03-04T05:06:07.0123456789Z"`), "/rows/1/2", "invalid_time"},
		"time at 24":          {all("ts", `"2026-03-04T24:00:00Z"`), "/rows/1/2", "invalid_time"},
		"time leap second":    {all("ts", `"2016-12-31T23:59:60Z"`), "/rows/1/2", "invalid_time"},
		"time offset a day":   {all("ts", `"2026-03-04T05:06:07+24:00"`), "/rows/1/2", "invalid_time"},
		"time epoch number":   {all("ts", "1772600767"), "/rows/1/2", "wrong_type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alone, _, err := decode(t, body([]string{good, good}))
			require.NoError(t, err)

			b, report, err := decode(t, body([]string{good, test.item, good}))
			require.NoError(t, err)
			require.Equal(t, alone.Sections, b.Sections, "nothing of the refused item is in the batch")
			require.Equal(t, 2, report.ItemsAccepted)
			require.Equal(t, 4, report.RowsAccepted)
			require.Equal(t, 3, report.ItemCount)
			require.Len(t, report.Rejected, 1)
			r := report.Rejected[0]
			require.Equal(t, 1, r.Index)
			require.Equal(t, "/metrics/1"+test.pointer, r.Pointer)
			require.Equal(t, test.code, r.Code)
			require.NotEmpty(t, r.Reason)

			b, report, err = decode(t, body([]string{test.item}))
			f := requireFault(t, err, fault.Invalid, "nothing_accepted")
			require.Nil(t, b)
			require.Len(t, report.Rejected, 1)
			require.Equal(t, []fault.Field{{Pointer: report.Rejected[0].Pointer, Code: test.code, Detail: report.Rejected[0].Reason}}, f.Fields)
		})
	}
}

func TestARefusalNeverEchoesWhatWasSent(t *testing.T) {
	t.Parallel()
	const secret = "hunter2 hunter2"
	for _, sent := range []string{
		body([]string{good}, `"`+secret+`": 1`),
		body([]string{good}, `"`+secret+`": 1`, `"`+secret+`": 1`),
		body([]string{good}, `"hostname": "`+secret+`\u0000"`),
		body([]string{`{"type": "` + secret + `"}`}),
		body([]string{`{"` + secret + `": 1}`}),
		body([]string{`{"type": "narrow", "columns": ["` + secret + `"]}`}),
		body([]string{`{"type": "narrow", "rows": [{"` + secret + `": 1}]}`}),
		body([]string{all("i8", `"`+secret+`"`)}),
	} {
		_, report, err := decode(t, sent)
		f := requireFault(t, err, fault.Invalid, "")
		require.NotContains(t, f.Detail+fmt.Sprint(f.Fields, report), "hunter2")
	}
}

func TestALimitRefusesTheBodyAtOnce(t *testing.T) {
	t.Parallel()
	items := []string{good, good, good}
	for name, test := range map[string]struct {
		change func(*push.Limits)
		code   string
	}{
		"body":    {func(l *push.Limits) { l.MaxBodyBytes = int64(len(body(items))) - 1 }, "body_too_large"},
		"encoded": {func(l *push.Limits) { l.MaxEncodedBytes = 1000 }, "batch_too_large"},
		"items":   {func(l *push.Limits) { l.MaxItems = 2 }, "too_many_items"},
		"rows":    {func(l *push.Limits) { l.MaxRows = 5 }, "too_many_rows"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lim := push.DefaultLimits()
			lim.MaxBodyBytes = int64(len(body(items)))
			lim.MaxItems, lim.MaxRows = 3, 6
			_, _, err := jsonpush.Decode(strings.NewReader(body(items)), collector, families(t), lim, now)
			require.NoError(t, err, "at the limit")
			test.change(&lim)
			_, _, err = jsonpush.Decode(strings.NewReader(body(items)), collector, families(t), lim, now)
			_ = requireFault(t, err, fault.TooLarge, test.code)
		})
	}
}

func TestARefusedItemTakesNoRoom(t *testing.T) {
	t.Parallel()
	items := []string{good}
	for range 50 {
		items = append(items, `{"type": "narrow", "columns": ["v"], "rows": [`+strings.Repeat("[1], ", 10)+`[true]]}`)
	}
	lim := push.DefaultLimits()
	lim.MaxEncodedBytes = 2500
	_, report, err := jsonpush.Decode(strings.NewReader(body(items)), collector, families(t), lim, now)
	require.NoError(t, err)
	require.Equal(t, 1, report.ItemsAccepted)
}

// endless is a body whose rows never end.
type endless struct{ head string }

func (e *endless) Read(p []byte) (int, error) {
	if e.head == "" {
		e.head = strings.Repeat("[0],", 1024)
	}
	n := copy(p, e.head)
	e.head = e.head[n:]
	return n, nil
}

func TestTheEncodedSizeIsMeasuredWhileEncoding(t *testing.T) {
	t.Parallel()
	lim := push.DefaultLimits()
	lim.MaxBodyBytes, lim.MaxRows = 1<<62, 1<<30
	head, _, _ := strings.Cut(body([]string{good}), "[1]")
	_, _, err := jsonpush.Decode(&endless{head: head}, collector, families(t), lim, now)
	_ = requireFault(t, err, fault.TooLarge, "batch_too_large")
}

func TestOneHundredRejectionsAreListedAndTheRestCounted(t *testing.T) {
	t.Parallel()
	items := make([]string, 151)
	for i := range items {
		items[i] = fmt.Sprintf(`{"type": "none%d", "rows": []}`, i)
	}
	_, report, err := decode(t, body(items))
	f := requireFault(t, err, fault.Invalid, "nothing_accepted")
	require.Len(t, f.Fields, 100)
	require.Len(t, report.Rejected, 100)
	require.Equal(t, 51, report.RejectedMore)
	for i, r := range report.Rejected {
		require.Equal(t, i, r.Index)
		require.Equal(t, "none"+strconv.Itoa(i), r.Type)
	}
}

func TestRejectionsAreListedInTheBodysOrder(t *testing.T) {
	t.Parallel()
	// The first is found out last: its time is judged when all is known.
	late := `{"type": "narrow", "timestamp": "2020-01-01T00:00:00Z", "columns": ["v"], "rows": [[1]]}`
	_, report, err := decode(t, body([]string{late, `{}`, good}))
	require.NoError(t, err)
	require.Equal(t, "time_out_of_range", report.Rejected[0].Code)
	require.Equal(t, "member_missing", report.Rejected[1].Code)
}

func TestLimitsAreValidatedTogether(t *testing.T) {
	t.Parallel()
	require.NoError(t, push.DefaultLimits().Validate())
	lim := push.DefaultLimits()
	lim.MaxRows, lim.MaxAge = 0, -time.Second
	require.EqualError(t, lim.Validate(), "max-rows: must be positive, is 0\nmax-age: must be positive, is -1s")
}

// requireFault requires a classified error; an empty code allows any.
func requireFault(tb testing.TB, err error, class fault.Class, code string) *fault.Error {
	tb.Helper()
	var f *fault.Error
	require.ErrorAs(tb, err, &f)
	require.Equal(tb, class, f.Class, f.Error())
	if code != "" {
		require.Equal(tb, code, f.Code, f.Error())
	}
	require.NotEmpty(tb, f.Detail)
	return f
}
