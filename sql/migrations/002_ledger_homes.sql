-- Whose ledger a database is, and what a person booked in it by hand.

-- One row each time a database was given its place. The newest row counts: a database whose file is another than the one
-- named here was copied, and must be adopted or forked before it may send. Before the first paid run there is no row.
create table ledger_homes (
    number bigint primary key,
    ledger_id uuid not null,           -- meta.ledger, or the id given by a fork
    inode bigint not null,             -- of the database's file: kept by mv, changed by cp and by a restored backup
    note varchar not null,
    recorded_at timestamp not null
);

-- One row an entry of the ledger that a person made. A settlement or a reversal makes several, which share an act.
create table ledger_acts (
    entry_id uuid primary key,         -- of the ledger
    act_id uuid not null,
    reverses uuid                      -- the entry that this one takes back; null in a settlement
);
