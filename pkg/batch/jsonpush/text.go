package jsonpush

import (
	"github.com/google/uuid"
)

// parseTime returns the time of an RFC 3339 text in microseconds since 1970;
// further digits are cut off, more than nine refused. Leap seconds are refused:
// no clock that a server runs on shows them. Every time that the format can
// express lies within PostgreSQL's range.
func parseTime(s []byte) (int64, bool) {
	if len(s) < len("2006-01-02T15:04:05Z") || len(s) > len("2006-01-02T15:04:05.999999999+00:00") ||
		s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	var bad bool
	two := func(i int) int {
		a, b := s[i]-'0', s[i+1]-'0'
		bad = bad || a > 9 || b > 9
		return int(a)*10 + int(b)
	}
	year, month, day := two(0)*100+two(2), two(5), two(8)
	hour, minute, second := two(11), two(14), two(17)
	if bad || month < 1 || month > 12 || day < 1 || day > daysIn(year, month) || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	us := ((daysSince1970(year, month, day)*24+int64(hour))*60+int64(minute))*60 + int64(second)
	us *= 1_000_000
	i := 19
	if s[i] == '.' {
		unit := int64(100_000)
		for i++; i < len(s) && s[i]-'0' <= 9; i++ {
			us += int64(s[i]-'0') * unit
			unit /= 10
		}
		if i == 20 || i > 29 {
			return 0, false
		}
	}
	switch zone := s[i:]; {
	case len(zone) == 1 && zone[0]|0x20 == 'z':
		return us, true
	case len(zone) == 6 && (zone[0] == '+' || zone[0] == '-') && zone[3] == ':':
		hours, minutes := two(i+1), two(i+4)
		if bad || hours > 23 || minutes > 59 {
			return 0, false
		}
		offset := int64(hours*60+minutes) * 60_000_000
		if zone[0] == '+' {
			offset = -offset
		}
		return us + offset, true
	}
	return 0, false
}

func daysIn(year, month int) int {
	if month == 2 && year%4 == 0 && (year%100 != 0 || year%400 == 0) {
		return 29
	}
	return [...]int{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[month-1]
}

// daysSince1970 counts the days of the proleptic Gregorian calendar, with years
// that begin in March so that the leap day is a year's last.
func daysSince1970(year, month, day int) int64 {
	if month <= 2 {
		year--
	}
	era := year / 400
	if year < 0 {
		era = -1 // January and February of year 0
	}
	yearOfEra := year - era*400
	dayOfYear := (153*((month+9)%12)+2)/5 + day - 1
	dayOfEra := yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear
	const daysTo1970 = 719_468 // from 1 March of year 0
	return int64(era)*146_097 + int64(dayOfEra) - daysTo1970
}

// parseUUID returns the UUID of its canonical text: 32 hexadecimal digits in
// five groups.
func parseUUID(s []byte) (uuid.UUID, bool) {
	if len(s) != 36 {
		return uuid.Nil, false
	}
	id, err := uuid.ParseBytes(s)
	return id, err == nil
}
