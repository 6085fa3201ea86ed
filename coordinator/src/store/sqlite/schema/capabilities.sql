-- What agents may be given to do. Those that joined before, and the tokens that are out, keep what they had:
-- everything.
ALTER TABLE join_tokens ADD COLUMN can TEXT NOT NULL DEFAULT 'run,verify';
ALTER TABLE join_tokens ADD COLUMN uses INTEGER NOT NULL DEFAULT 1;
ALTER TABLE join_tokens ADD COLUMN used TEXT NOT NULL DEFAULT '[]';
UPDATE join_tokens SET used = json_array(json_object('agent', lower(hex(used_by)), 'key', used_key))
    WHERE used_by IS NOT NULL;
ALTER TABLE join_tokens DROP COLUMN used_by;
ALTER TABLE join_tokens DROP COLUMN used_key;
ALTER TABLE enrolments ADD COLUMN can TEXT NOT NULL DEFAULT 'run,verify';
ALTER TABLE agents ADD COLUMN admittance TEXT NOT NULL DEFAULT '{"by":"earlier","can":"run,verify"}';
