-- How many commits changed something: a copy of the database says how old it is.
ALTER TABLE store ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
