import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.Driver;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;

/** The job in JDBC. Its argument is the address; the rest is in that, as <code>iapctl env NAME --format jdbc</code> prints it. */
final class Job {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            Driver driver = DriverManager.getDriver(arguments[0]);
            String user = text(connection, "select current_user");
            int sum;
            try (PreparedStatement statement = connection.prepareStatement("select ?::int + ?::int")) {
                statement.setInt(1, 40);
                statement.setInt(2, 2);
                try (ResultSet result = statement.executeQuery()) {
                    result.next();
                    sum = result.getInt(1);
                }
            }
            long copied = copy(connection);
            String sqlstate = failure(connection.createStatement(), "select 1 / 0");
            Statement sleeping = connection.createStatement();
            Timer timer = new Timer(true);
            timer.schedule(new TimerTask() {
                @Override
                public void run() {
                    try {
                        sleeping.cancel();
                    } catch (SQLException error) {
                        error.printStackTrace();
                    }
                }
            }, 500);
            String cancelled = failure(sleeping, "select pg_sleep(60)");
            System.out.printf(
                "{\"client\": \"pgjdbc %d.%d\", \"user\": \"%s\", \"sum\": %d, \"copied\": %d, \"sqlstate\": \"%s\", \"cancelled\": \"%s\"}%n",
                driver.getMajorVersion(), driver.getMinorVersion(), user, sum, copied, sqlstate, cancelled);
        }
    }

    private static String text(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(query)) {
            result.next();
            return result.getString(1);
        }
    }

    private static long copy(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("create temporary table rows (number int, text text)");
        }
        StringBuilder lines = new StringBuilder();
        for (int number = 0; number < 1000; number++) {
            lines.append(number).append("\trow ").append(number).append('\n');
        }
        PGConnection copying = connection.unwrap(PGConnection.class);
        copying.getCopyAPI().copyIn("copy rows from stdin", new StringReader(lines.toString()));
        StringWriter out = new StringWriter();
        copying.getCopyAPI().copyOut("copy rows to stdout", out);
        return out.toString().lines().count();
    }

    private static String failure(Statement statement, String query) {
        try {
            statement.execute(query);
            return "nothing failed";
        } catch (SQLException error) {
            return error.getSQLState();
        }
    }
}
